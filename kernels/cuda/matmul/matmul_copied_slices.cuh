// The tiles of matmul_copied.cu whose blocks have several partitions at once.
#pragma once
#include "matmul_copied.cuh"

constexpr int SLICED_THREADS = (SLICES + 1) * WARPGROUP;  // a warp that copies for each of those that multiply
constexpr int SLICED_X_BYTES = SLICED_TOKENS * 128, SLICED_STAGE_BYTES = SLICED_X_BYTES + ROWS * 128;
constexpr int SLICED_TOTAL_AT = SLICES * SLICED_STAGES * SLICED_STAGE_BYTES;
constexpr int SLICED_BARRIERS_AT = SLICED_TOTAL_AT + SLICED_TOKENS * ROWS * 4;

// One thread for each warpgroup calls it.
DEVICE void copy_slices(const CopiedParams& p, u32 stages, u32 full, u32 empty, int group, int first_row,
                        int first_token) {
    const MatrixParams& matrix = p.tiled.matrix;
    const i64 step = (i64)p.padded_rows * 128;
    const int bytes = min(ROWS, p.padded_rows - first_row) * 128;
    bool waited = false;
    RingPlace place;
    for (int partition = group; partition < matrix.num_partitions; partition += SLICES) {
        const int end = partition_start(partition + 1, matrix) * p.unit_chunks;
        for (int chunk = partition_start(partition, matrix) * p.unit_chunks; chunk < end; chunk++) {
            const u32 stage = stages + place.stage * SLICED_STAGE_BYTES, barrier = full + 8 * place.stage;
            barrier_wait(empty + 8 * place.stage, place.phase ^ 1);
            barrier_arrive_expecting(barrier, SLICED_X_BYTES + bytes);
            copy_bulk(stage + SLICED_X_BYTES, p.weights + chunk * step + (i64)first_row * 128, bytes, barrier);
            if (!waited) wait_for_previous(), waited = true;
            copy_box(stage, p.x_map, chunk * 64, first_token, barrier);
            place.advance(SLICED_STAGES);
        }
    }
    if (!waited) wait_for_previous();
}

// A block has a tile of SLICED_TOKENS x ROWS outputs, of which its warpgroups have every SLICES'th partition each; they
// pass its total on to each other through shared memory, in the order of partitions.
KERNEL __launch_bounds__(SLICED_THREADS, 1) matmul_copied_sliced(const __grid_constant__ CopiedParams p) {
    extern __shared__ u8 unaligned[];
    const u32 base = (shared_address(unaligned) + 1023) & ~1023u;
    u8* const aligned = unaligned + (base - shared_address(unaligned));
    const MatrixParams& matrix = p.tiled.matrix;
    const bool copies = threadIdx.x >= SLICES * WARPGROUP;
    const int group = copies ? threadIdx.x / 32 - SLICES * 4 : threadIdx.x / WARPGROUP, lane = threadIdx.x % 32;
    const int first_row = blockIdx.x * ROWS, first_token = blockIdx.y * SLICED_TOKENS;
    const u32 totals_left = base + SLICED_BARRIERS_AT;
    const u32 full = totals_left + 8 * (SLICES + group * 2 * SLICED_STAGES), empty = full + 8 * SLICED_STAGES;
    const u32 stages = base + group * SLICED_STAGES * SLICED_STAGE_BYTES;
    if (copies && lane == 0) {
        for (int i = 0; i < SLICED_STAGES; i++) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, 4);
        barrier_init(totals_left + 8 * group, 4);
        publish_barriers();
    }
    __syncthreads();
    if (copies) {
        if (lane == 0) copy_slices(p, stages, full, empty, group, first_row, first_token);
        return;
    }
    wait_for_previous();
    float4* const total = (float4*)(aligned + SLICED_TOTAL_AT) + threadIdx.x % WARPGROUP;
    float acc[ROWS / 8][4];
    RingPlace place;
    u32 previous = 0;
    auto release = [&](u32 barrier) {
        if (lane == 0) barrier_arrive(barrier);
    };
    int round = 0;
#pragma unroll 1
    for (int partition = group; partition < matrix.num_partitions; partition += SLICES, round++) {
        const int end = partition_start(partition + 1, matrix) * p.unit_chunks;
        bool adds = false;
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[n][i] = 0.0f;
#pragma unroll 1
        for (int chunk = partition_start(partition, matrix) * p.unit_chunks; chunk < end; chunk++) {
            const u32 stage = stages + place.stage * SLICED_STAGE_BYTES;
            barrier_wait(full + 8 * place.stage, place.phase);
            const u64 a = wgmma_descriptor(stage), b = wgmma_descriptor(stage + SLICED_X_BYTES);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++) wgmma_64(acc, a + 2 * s, b + 2 * s, adds || s > 0);
            wgmma_commit();
            if (adds) {
                wgmma_wait<1>();
                release(previous);
            }
            adds = true;
            previous = empty + 8 * place.stage;
            place.advance(SLICED_STAGES);
        }
        wgmma_wait<0>();
        release(previous);
        if (partition > 0) {
            const int before = (partition - 1) % SLICES;
            barrier_wait(totals_left + 8 * before, (before < group ? round : round - 1) & 1);
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++) {
                const float4 sum = total[n * WARPGROUP];
                acc[n][0] = sum.x + acc[n][0], acc[n][1] = sum.y + acc[n][1];
                acc[n][2] = sum.z + acc[n][2], acc[n][3] = sum.w + acc[n][3];
            }
        }
        if (partition == matrix.num_partitions - 1) {
            store_as(p.tiled, acc, first_row, first_token);
            break;
        }
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++)
            total[n * WARPGROUP] = make_float4(acc[n][0], acc[n][1], acc[n][2], acc[n][3]);
        __syncwarp();
        if (lane == 0) barrier_arrive(totals_left + 8 * group);
    }
}
