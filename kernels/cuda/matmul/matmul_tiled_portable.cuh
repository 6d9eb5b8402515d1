// The tiles of matmul_tiled.cu without Hopper's instructions.
#pragma once

// Shared memory: stages of x, then of weights. How many: `kernels/ops/matmul_tuning.py`.
template <int TOKENS>
struct Ring : TileRing<FORMAT, TOKENS> {
    using T = TileRing<FORMAT, TOKENS>;
    static constexpr bool staged = T::weight_stages > 0;  // weights
    static constexpr int x_bytes = TOKENS * 128, weight_bytes = 8 * Staged<FORMAT>::bytes;
    static_assert(T::stages * x_bytes + T::weight_stages * weight_bytes == T::num_bytes, "see `_portable_ring`");
    static_assert(T::stages >= 2, "a stage is filled while another one is read");
};

// Products of two steps of 16 columns of a warp's 16 outputs with the TOKENS rows of x at `stage`, whose 16-byte
// vectors are swizzled: vector ^ row % 8.
template <int TOKENS>
DEVICE void multiply(Accumulators<TOKENS>& acc, const u32 (&a)[2][4], u32 stage, int half, int lane) {
    const int row = lane & 7;
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n += 2) {  // matrices: (n, k 0-7), (n, k 8-15), (n + 1, k 0-7), ...
            u32 b[4];
            const int token = (n + (lane >> 4)) * 8 + row, vector = 2 * (2 * half + s) + (lane >> 3 & 1);
            load_matrices(b, stage + token * 128 + ((vector ^ row) << 4));
            mma_16x8x16(acc.d[n], a[s], b[0], b[1]);
            mma_16x8x16(acc.d[n + 1], a[s], b[2], b[3]);
        }
}

template <int TOKENS>
DEVICE void matmul_tiled(const TiledParams& p) {
    using R = Ring<TOKENS>;
    const MatrixParams& matrix = p.matrix;
    constexpr bool sums_partitions = TOKENS <= SUMMING_TOKENS;
    Work work;
    if (!work.find(p, TOKENS)) return;
    load_grid();
    extern __shared__ __align__(128) u8 shared[];
    const u32 x_stages = shared_address(shared), weight_stages = x_stages + R::stages * R::x_bytes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int num_tiles = (matrix.num_rows + 15) / 16;
    const int tile = blockIdx.x * 8 + warp;
    const u8* weights = matrix.packed + work.expert * matrix.expert_bytes;
    const int read_tile = min(tile, (num_tiles + 3) / 4 * 4 - 1);  // rows beyond the matrix repeat its last ones
    const RowBase base = row_base(matrix, work.expert, tile, lane);
    prefetch_rows(p, work);
    if (!p.tiles) wait_for_previous();

    // Copies of x: thread i brings the 16-byte vector i % 8 of the rows i / 8, i / 8 + 32, ...
    const int vector = threadIdx.x & 7, first_row = threadIdx.x >> 3;
    auto copy = [&](int chunk, int stage) {
        if (chunk < work.last_chunk) {
            if (R::staged)
                Staged<FORMAT>::copy(weight_stages + stage * R::weight_bytes + warp * Staged<FORMAT>::bytes,
                                     unit_address<FORMAT>(weights, read_tile, chunk, matrix.num_units),
                                     chunk % Layout<FORMAT>::chunks, lane);
            const u8* from =
                (const u8*)p.x + ((i64)(work.first_token + first_row) * matrix.width + chunk * 64 + vector * 8) * 2;
            const bool inside = chunk * 64 + vector * 8 < matrix.width;
            const u32 to = x_stages + stage * R::x_bytes + first_row * 128 + ((vector ^ (first_row & 7)) << 4);
#pragma unroll
            for (int row = 0; row < TOKENS; row += 32) {
                if (TOKENS < 32 && first_row >= TOKENS) break;
                const bool wanted = inside && first_row + row < work.num_tokens;
                copy_async(to + row * 128, wanted ? from + (i64)row * matrix.width * 2 : (const u8*)p.x, wanted);
            }
        }
        copy_commit();
    };
#pragma unroll
    for (int i = 0; i < R::stages - 1; i++) copy(work.first_chunk + i, i);

    Accumulators<TOKENS> acc;
    Accumulators<sums_partitions ? TOKENS : 8> total;
    acc.clear(), total.clear();
    int stage = 0, filling = R::stages - 1;
    for (int partition = work.first_partition, chunk = work.first_chunk; partition < work.last_partition; partition++) {
        for (const int end = partition_start(partition + 1, matrix) * Layout<FORMAT>::chunks; chunk < end; chunk++) {
            copy_wait<R::stages - 2>();
            __syncthreads();  // this chunk is there; everybody has finished with the one before
            copy(chunk + R::stages - 1, filling);
            if (++filling == R::stages) filling = 0;
            Raw<FORMAT> raw;
            if constexpr (R::staged)
                Staged<FORMAT>::load(raw, weight_stages + stage * R::weight_bytes + warp * Staged<FORMAT>::bytes, lane);
            else
                raw.load(unit_address<FORMAT>(weights, read_tile, chunk, matrix.num_units), lane);
            const Scales<FORMAT> scales(raw, base);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                u32 a[2][4];
                fragment_of<FORMAT>(raw, scales, 2 * half, a[0]);
                fragment_of<FORMAT>(raw, scales, 2 * half + 1, a[1]);
                multiply<TOKENS>(acc, a, x_stages + stage * R::x_bytes, half, lane);
            }
            if (++stage == R::stages) stage = 0;
        }
        if constexpr (sums_partitions) {
            total.add(acc);
            acc.clear();
        }
    }
    float* sums = (float*)shared;  // the rings are free again
    const int partition = work.partition_to_leave();
    if constexpr (sums_partitions)
        store_tile(p, work, partition, sums, total);
    else
        store_tile(p, work, partition, sums, acc);
}

#define TILE_KERNEL(TOKENS)                                                                      \
    KERNEL __launch_bounds__(256) matmul_tiled_##TOKENS(const __grid_constant__ TiledParams p) { \
        matmul_tiled<TOKENS>(p);                                                                 \
    }
TILE_KERNEL(16)
TILE_KERNEL(32)
TILE_KERNEL(64)
TILE_KERNEL(128)
