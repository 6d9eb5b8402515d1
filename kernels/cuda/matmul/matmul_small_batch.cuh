// Products of two to four tokens: matmul_small_batch.
#pragma once
#include "matmul_weights.cuh"

// Shared memory: rows of x as float16, `stride` bytes each; the sums of tiles; each warp's ring of weights.
KERNEL __launch_bounds__(32 * MAX_BLOCK_WARPS) matmul_small_batch(const __grid_constant__ SmallBatchParams p) {
    const MatrixParams& matrix = p.matrix;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Place place(p);
    load_grid();
    const int stride = matrix.num_chunks * 128 + 16;  // of rows of x: so that ldmatrix has no bank conflicts
    int tile = place.tile;
    Weights weights(matrix, matrix.packed, shared_address(shared) + p.ring_at, place.partition, tile, place.tile_step,
                    place.num_tiles);
    const RowBase base = row_base(matrix, 0, tile, lane);
    // A lane of a tile's first warp finishes every 32nd of its outputs, which are numbered token by token.
    const bool is_gated = Epilogue(p.output).is_gated();
    const int rows_log2 = is_gated ? 3 : 4, rows_mask = (1 << rows_log2) - 1;
    const int num_outputs = p.num_tokens << rows_log2, columns = (p.num_tokens + 1) & ~1;
    auto output_at = [&](int i) { return Output(matrix, p.output, 0, i >> rows_log2, tile * 16 + (i & rows_mask)); };
    Output output = output_at(lane);
    wait_for_x(p);
    const bool finishes = place.partition == 0 && lane < num_outputs;
    if (finishes) output.destination.load_residual();
    const int row_vectors = stride / 16;
#pragma unroll 4
    for (int vector = threadIdx.x; vector < p.num_tokens * row_vectors; vector += blockDim.x) {
        const int token = vector / row_vectors, at = (vector - token * row_vectors) * 16;
        const i64 source = p.x_rows ? p.x_rows[token] : token;
        const u8* row = (const u8*)p.x + source * matrix.width * 2;
        *(uint4*)(shared + vector * 16) = at < matrix.width * 2 ? *(const uint4*)(row + at) : uint4{};
    }
    Factors rows(base);
    __syncthreads();

    // ldmatrix: lane l addresses row l % 8 of matrix l / 8. Columns of the product that are no tokens repeat the last.
    const u32 x_address =
        shared_address(shared) + weights.x_at() + min(lane & 7, p.num_tokens - 1) * stride + (lane >> 3) * 16;
    float* sums = (float*)(shared + p.num_tokens * stride);  // [2][warps][16 rows][columns]
    // All warps of a block go through their tiles in step, and so come to the barrier of the partitions equally often.
    int next_tile = place.block_tile + place.tile_step;
#pragma unroll 1
    for (int buffer = 0;; buffer ^= 1) {
        float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const bool has_tile = tile < place.num_tiles;
        if (has_tile)
            weights.multiply(matrix, matrix.packed, acc, rows, x_address, tile + place.tile_step >= place.num_tiles);
        // The other buffer was read before all warps came here.
        float* own = sums + (buffer * (blockDim.x / 32) + warp) * 16 * columns;
        if (2 * (lane & 3) < columns) {
            float* to = own + (lane >> 2) * columns + 2 * (lane & 3);
            *(float2*)to = make_float2(acc[0], acc[1]);
            *(float2*)(to + 8 * columns) = make_float2(acc[2], acc[3]);
        }
        wait_for_partitions(p);
        if (finishes && has_tile) {
#pragma unroll 1
            for (int i = lane;;) {
                const float* from = own + (i & rows_mask) * columns + (i >> rows_log2);
                const float sum = sum_of_partitions<8>(matrix.num_partitions, from, 16 * columns);
                const float up_sum =
                    is_gated ? sum_of_partitions<8>(matrix.num_partitions, from + 8 * columns, 16 * columns) : 0.0f;
                output.finish(sum, up_sum);
                if ((i += 32) >= num_outputs) break;
                output = output_at(i);
                output.destination.load_residual();
            }
        }
        if (next_tile >= place.num_tiles) break;
        next_tile += place.tile_step, tile += place.tile_step;
        rows = Factors(row_base(matrix, 0, tile, lane));
        output = output_at(lane);
        if (finishes) output.destination.load_residual();
    }
    if (p.overlaps_previous()) wait_for_previous();
}
