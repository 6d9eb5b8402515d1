// The tiles of matmul_tiled.cu on Hopper for MXFP4, whose weights take few instructions to unpack: they are up to three
// groups ahead of their products, not one, and only the warps that copy keep count of what is to be copied. Otherwise
// this is matmul_tiled_hopper.cuh, apart from it until other formats have been measured with either.
#pragma once
#include "matmul_tiled_hopper.cuh"

// The groups of a block, one after the other. They begin anew with each partition, whose last one may be short.
struct Groups {
    int partition, chunk, end;  // `end` of the partition
    int stage = 0;

    DEVICE Groups(const Work& work, const MatrixParams& matrix)
        : partition(work.first_partition), chunk(work.first_chunk) {
        find_end(matrix);
    }
    DEVICE void find_end(const MatrixParams& matrix) { end = partition_start(partition + 1, matrix); }
    template <bool CAN_BE_SHORT>
    DEVICE void advance(const MatrixParams& matrix, int chunks, int stages) {
        chunk += chunks;
        if (++stage == stages) stage = 0;
        if (!CAN_BE_SHORT || chunk < end) return;
        chunk = end, partition++;
        find_end(matrix);
    }
};

template <int TOKENS>
DEVICE void matmul_tiled_ahead(const HopperTiledParams& t) {
    using R = Ring<TOKENS>;
    static_assert(Layout<FORMAT>::chunks == 1 && !Layout<FORMAT>::has_grid, "a unit is a chunk");
    constexpr bool sums_partitions = TOKENS <= SUMMING_TOKENS;
    const TiledParams& p = t.tiled;
    const MatrixParams& matrix = p.matrix;
    Work work;
    if (!work.find(p, TOKENS)) return;
    extern __shared__ u8 unaligned[];
    const u32 x_stages = (shared_address(unaligned) + 1023) & ~1023u;
    const u32 weight_stages = x_stages + R::stages * R::x_bytes;
    const u32 x_full = x_stages + R::barriers_at, weights_full = x_full + 8 * R::stages;
    const int warp = __shfl_sync(ALL_LANES, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    // The warp that issues copies falls behind with its own work: in tiles whose chunks take little time, two share
    // that.
    const bool copies_x = warp == 0, copies_weights = warp == (TOKENS > 128 ? 0 : 4);
    const int first_block = blockIdx.x * 2, num_blocks = min(2, (matrix.num_rows + 63) / 64 - first_block);
    const u8* weights = matrix.packed + work.expert * matrix.expert_bytes;
    constexpr bool can_be_short = R::group > 1;
    Groups next_x(work, matrix), next_weights(work, matrix);  // that are to be copied
    auto copy_next_weights = [&] {
        if (!copies_weights) return;
        const int chunk = next_weights.chunk, end = can_be_short ? next_weights.end : work.last_chunk;
        const int bytes = min(R::units, end - chunk) * R::block_bytes;
        const u32 to = weight_stages + next_weights.stage * R::weight_bytes,
                  full = weights_full + 8 * next_weights.stage;
        const bool exists = chunk < work.last_chunk;
        next_weights.advance<can_be_short>(matrix, R::group, R::weight_stages);
        if (lane || !exists) return;
        barrier_arrive_expecting(full, num_blocks * bytes);
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (i < num_blocks)
                copy_bulk(to + i * R::units * R::block_bytes,
                          weights + ((i64)(first_block + i) * matrix.num_units + chunk) * R::block_bytes, bytes, full);
    };
    auto copy_next_x = [&] {
        if (!copies_x) return;
        const int chunk = next_x.chunk;
        const u32 to = x_stages + next_x.stage * R::x_bytes, full = x_full + 8 * next_x.stage;
        next_x.advance<can_be_short>(matrix, R::group, R::stages);
        if (lane || chunk >= work.last_chunk) return;
        barrier_arrive_expecting(full, R::x_bytes);
#pragma unroll
        for (int i = 0; i < R::group; i++)
            copy_box(to + i * R::box_bytes, t.x_map, (chunk + i) * 64, work.first_token, full);
    };
    if (threadIdx.x == 0) {
        for (int i = 0; i < R::stages; i++) barrier_init(x_full + 8 * i, 1);
        for (int i = 0; i < R::weight_stages; i++) barrier_init(weights_full + 8 * i, 1);
        publish_barriers();
    }
    __syncthreads();
    for (int i = 0; i < R::weight_stages - 1; i++) copy_next_weights();  // constants, before the wait
    prefetch_rows(p, work);
    if (!p.tiles) wait_for_previous();
    for (int i = 0; i < R::stages - 2; i++) copy_next_x();

    const int tile = blockIdx.x * 8 + warp;
    const RowBase base = row_base(matrix, work.expert, tile, lane);
    const u32 own_weights =
        weight_stages + warp / 4 * R::units * R::block_bytes + warp % 4 * Layout<FORMAT>::unit_bytes;
    Accumulators<TOKENS> acc;
    Accumulators<sums_partitions ? TOKENS : 8> total;
    acc.clear(), total.clear();
    RingPlace x, w;  // which stages the group is in
    for (int partition = work.first_partition, chunk = work.first_chunk; partition < work.last_partition; partition++) {
        const int end = partition_start(partition + 1, matrix);
        for (; chunk < end; chunk += R::group) {
            // Everybody has read the weights of the group before and finished the products of the one before that.
            __syncthreads();
            copy_next_x();
            copy_next_weights();
            barrier_wait(weights_full + 8 * w.stage, w.phase);
            const u32 x_stage = x_stages + x.stage * R::x_bytes, weight_stage = own_weights + w.stage * R::weight_bytes;
#pragma unroll
            for (int i = 0; i < R::group; i++) {
                if (can_be_short && chunk + i >= end) break;
                Raw<FORMAT> raw;
                raw.load_shared(weight_stage + i * R::block_bytes, 0, lane);
                const Scales<FORMAT> scales(raw, base);
                u32 a[2][2][4];  // while one half's products run, the other half is dequantised
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    wgmma_wait<1>();
                    fragment_of<FORMAT>(raw, scales, 2 * half, a[half][0]);
                    fragment_of<FORMAT>(raw, scales, 2 * half + 1, a[half][1]);
                    if (i == 0 && half == 0) barrier_wait(x_full + 8 * x.stage, x.phase);
                    multiply<TOKENS>(acc, a[half], x_stage + i * R::box_bytes, half);
                }
            }
            x.advance(R::stages), w.advance(R::weight_stages);
        }
        chunk = end;
        wgmma_wait<0>();
        if constexpr (sums_partitions) {
            total.add(acc);
            acc.clear();
        }
    }
    float* sums = (float*)(unaligned + (x_stages - shared_address(unaligned)));  // the rings are free again
    const int partition = work.partition_to_leave();
    if constexpr (sums_partitions)
        store_tile(p, work, partition, sums, total);
    else
        store_tile(p, work, partition, sums, acc);
}
