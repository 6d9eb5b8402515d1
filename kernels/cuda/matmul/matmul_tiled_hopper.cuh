// The tiles of matmul_tiled.cu on Hopper.
#pragma once
#include "../common/bulk.cuh"

// The warps synchronise once for a group of chunks. Shared memory, in this order: stages of x, a group each, at
// multiples of 1024 bytes; stages of weights, a group of the block's 128 rows each, or the unit of k that holds
// several; barriers. How many of each: `kernels/ops/matmul_tuning.py`.
template <int TOKENS>
struct Ring : TileRing<FORMAT, TOKENS> {
    using T = TileRing<FORMAT, TOKENS>;
    using L = Layout<FORMAT>;
    static constexpr int box_bytes = TOKENS * 128, x_bytes = T::group * box_bytes;
    static constexpr int units = L::is_k ? 1 : T::group;  // of a stage of weights
    static constexpr int block_bytes = 4 * L::unit_bytes, weight_bytes = 2 * units * block_bytes;
    static constexpr int barriers_at = T::stages * x_bytes + T::weight_stages * weight_bytes;
    static constexpr int barrier_bytes = 8 * (T::stages + T::weight_stages);
    static_assert(1024 + barriers_at + barrier_bytes <= T::num_bytes, "see `_hopper_ring`");
    static_assert(T::stages >= 3, "a stage is filled while another one is read and products of a third still run");
};

// Products of half a chunk (2 steps of 16 columns) of a warpgroup's 64 outputs with the TOKENS rows of x at `stage`.
// They run on after the call.
template <int TOKENS>
DEVICE void multiply(Accumulators<TOKENS>& acc, const u32 (&a)[2][4], u32 stage, int half) {
    wgmma_fence();
    const u64 descriptor = wgmma_descriptor(stage) + 4 * half;
    wgmma_64(acc.d, a[0], descriptor);
    wgmma_64(acc.d, a[1], descriptor + 2);
    wgmma_commit();
}

template <int TOKENS>
DEVICE void matmul_tiled(const HopperTiledParams& t) {
    using R = Ring<TOKENS>;
    using L = Layout<FORMAT>;
    constexpr bool sums_partitions = TOKENS <= SUMMING_TOKENS;
    const TiledParams& p = t.tiled;
    const MatrixParams& matrix = p.matrix;
    Work work;
    if (!work.find(p, TOKENS)) return;
    load_grid();
    extern __shared__ u8 unaligned[];
    const u32 x_stages = (shared_address(unaligned) + 1023) & ~1023u;
    const u32 weight_stages = x_stages + R::stages * R::x_bytes;
    const u32 x_full = x_stages + R::barriers_at, weights_full = x_full + 8 * R::stages;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // The thread that issues copies falls behind with its own work: in tiles whose chunks take little time, two share
    // that.
    const bool copies_x = threadIdx.x == 0, copies_weights = threadIdx.x == (TOKENS > 128 ? 0 : 128);
    const int first_block = blockIdx.x * 2, num_blocks = min(2, (matrix.num_rows + 63) / 64 - first_block);
    const u8* weights = matrix.packed + work.expert * matrix.expert_bytes;
    const int last_unit = work.last_chunk / L::chunks;
    auto copy_weights = [&](int unit, int stage) {
        const int bytes = min(R::units, last_unit - unit) * R::block_bytes;
        if (bytes <= 0) return;
        const u32 to = weight_stages + stage * R::weight_bytes, full = weights_full + 8 * stage;
        barrier_arrive_expecting(full, num_blocks * bytes);
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (i < num_blocks)
                copy_bulk(to + i * R::units * R::block_bytes,
                          weights + ((i64)(first_block + i) * matrix.num_units + unit) * R::block_bytes, bytes, full);
    };
    auto copy_x = [&](int chunk, int stage) {
        if (chunk >= work.last_chunk) return;
        const u32 to = x_stages + stage * R::x_bytes, full = x_full + 8 * stage;
        barrier_arrive_expecting(full, R::x_bytes);
#pragma unroll
        for (int i = 0; i < R::group; i++)
            copy_box(to + i * R::box_bytes, t.x_map, (chunk + i) * 64, work.first_token, full);
    };
    if (threadIdx.x == 0) {
        for (int i = 0; i < R::stages; i++) barrier_init(x_full + 8 * i, 1);
        for (int i = 0; i < R::weight_stages; i++) barrier_init(weights_full + 8 * i, 1);
        publish_barriers();
        for (int i = 0; i < R::weight_stages - 1; i++)  // constants, before the wait
            copy_weights(work.first_chunk / L::chunks + i, i);
    }
    prefetch_rows(p, work);
    if (!p.tiles) wait_for_previous();
    // Groups begin anew with each partition, whose last one may be short; not so where units are wider than a group.
    constexpr bool can_be_short = R::group > 1 && !L::is_k;
    int next_partition = work.first_partition, next_x = work.first_chunk,
        next_stage = 0;  // the next group of x to copy
    int next_end = partition_start(next_partition + 1, matrix) * L::chunks;
    auto copy_next_x = [&] {
        if (copies_x) copy_x(next_x, next_stage);
        next_x += R::group;
        if (++next_stage == R::stages) next_stage = 0;
        if (can_be_short && next_x >= next_end)
            next_x = next_end, next_end = partition_start(++next_partition + 1, matrix) * L::chunks;
    };
    for (int i = 0; i < R::stages - 2; i++) copy_next_x();

    const int tile = blockIdx.x * 8 + warp;
    const RowBase base = row_base(matrix, work.expert, tile, lane);
    const u32 own_weights = weight_stages + warp / 4 * R::units * R::block_bytes + warp % 4 * L::unit_bytes;
    Accumulators<TOKENS> acc;
    Accumulators<sums_partitions ? TOKENS : 8> total;
    acc.clear(), total.clear();
    RingPlace x, w;  // which stages the group is in
    for (int partition = work.first_partition, chunk = work.first_chunk; partition < work.last_partition; partition++) {
        const int end = partition_start(partition + 1, matrix) * L::chunks;
        for (; chunk < end; chunk += R::group) {
            // Everybody has read the weights of the group before and finished the products of the one before that.
            __syncthreads();
            copy_next_x();
            const int sub = chunk % L::chunks;
            if (sub == 0) {
                const int next = can_be_short ? min(chunk + R::group, end) : chunk / L::chunks + R::weight_stages - 1;
                if (copies_weights) copy_weights(next, w.stage == 0 ? R::weight_stages - 1 : w.stage - 1);
                barrier_wait(weights_full + 8 * w.stage, w.phase);
            }
            const u32 x_stage = x_stages + x.stage * R::x_bytes, weight_stage = own_weights + w.stage * R::weight_bytes;
#pragma unroll
            for (int i = 0; i < R::group; i++) {
                if (can_be_short && chunk + i >= end) break;
                Raw<FORMAT> raw;
                if (L::is_k)
                    raw.load_shared(weight_stage, sub + i, lane);
                else
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
            x.advance(R::stages);
            if (!L::is_k || sub + R::group == L::chunks) w.advance(R::weight_stages);
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
