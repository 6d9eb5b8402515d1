// y = x W^T on packed weights: what the kernels of matmul.cu and matmul_tiled.cu share.
//
// Batch-invariant by construction: the columns of W are cut into `num_partitions` ranges of whole units (split-K), a
// number fixed for each matrix. A partition's sum is one chain of tensor core products in the order of k, and the
// partitions are added in order. Whether they are computed by the warps of one block, one after the other, or by
// several blocks, and with how many other tokens, changes nothing.
#pragma once
#include "matmul_epilogue.cuh"

// The parameters of matmul_tiled_N (on Hopper a part of them) and matmul_reduce.
struct TiledParams {
    MatrixParams matrix;
    OutputParams output;
    const void* x;         // [num_x_rows, width] float16
    int num_tokens;        // rows of the output, of all experts
    float* partials;       // [num_partitions, num_tokens, num_rows]: partitions computed by several blocks
    const int4* tiles;     // [num_tiles] (expert, first token, number of tokens, -); null: tiles of TOKENS each
    const int* num_tiles;  // [1]
};

// A partition's first unit of k.
DEVICE int partition_start(int partition, const MatrixParams& matrix) {
    return (u64)(u32)(partition * matrix.num_units) * matrix.partition_reciprocal >> RECIPROCAL_BITS;
}

// The sums of an output's partitions, or of several neighbours', in order, `stride` floats apart, AT_ONCE of them
// fetched together.
template <int AT_ONCE, typename Sum = float, typename Stride>
DEVICE Sum sum_of_partitions(int num_partitions, const float* from, Stride stride) {
    Sum sum = *(const Sum*)from;
#pragma unroll 1
    for (int partition = 1; partition < num_partitions; partition += AT_ONCE) {
        Sum more[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (partition + i < num_partitions) more[i] = *(const Sum*)(from + (partition + i) * stride);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (partition + i < num_partitions) sum += more[i];
    }
    return sum;
}

// What a format with a grid needs in shared memory before its weights are unpacked. All threads of a block call it.
template <int F = FORMAT>
DEVICE void load_grid() {
    if constexpr (Layout<F>::has_grid) Grid<F>::load();
}

DEVICE RowBase row_base(const MatrixParams& matrix, int expert, int tile, int lane) {
    RowBase result = {{0, 0}};
    if constexpr (Layout<FORMAT>::has_row_base) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = tile * 16 + 8 * half + (lane >> 2);
            if (row < matrix.num_rows) result.base[half] = matrix.base[(i64)expert * matrix.num_rows + row];
        }
    }
    return result;
}
