// y = x W^T on packed weights of one FORMAT, with the operation that follows; see matmul.cuh.
//   matmul_gemv         one token: x lies in shared memory, a warp has a tile of 16 outputs or a partition of one
//   matmul_gemv_normed  the same, and the norm before it
//   matmul_gemv_routed  the same for each token's experts that a router has chosen
//   matmul_gemv_summed  the same of one token, and the weighted sum of what its experts give
//   matmul_small_batch  two to four tokens
//   matmul_reduce       adds the partitions that several blocks of matmul_tiled_N have left; _quads: four at once
#include "matmul_gemv_summed.cuh"
#include "matmul_small_batch.cuh"

KERNEL __launch_bounds__(32 * MAX_BLOCK_WARPS, 1) matmul_gemv(const __grid_constant__ SmallBatchParams p) {
    matmul_gemv<GEMV_HALF>(p);
}

// x is float32 and normed here; at least NORM_PARTITIONS warps.
KERNEL __launch_bounds__(32 * MAX_BLOCK_WARPS, 1) matmul_gemv_normed(const __grid_constant__ SmallBatchParams p) {
    matmul_gemv<GEMV_NORMED>(p);
}

// Grid: blocks, ranks, tokens.
KERNEL __launch_bounds__(32 * Layout<FORMAT>::routed_block_warps, 1)
    matmul_gemv_routed(const __grid_constant__ SmallBatchParams p) {
    matmul_gemv<GEMV_ROUTED>(p);
}

template <int COUNT>
struct alignas(4 * COUNT) Floats {
    float of[COUNT];
    DEVICE void operator+=(const Floats& other) {
#pragma unroll
        for (int k = 0; k < COUNT; k++) of[k] += other.of[k];
    }
};
template <int COUNT>
struct alignas(2 * COUNT) Halves {
    u16 of[COUNT];
};

// A thread has COUNT neighbouring outputs of a token, of gated activations as many gates and ups; a block has
// REDUCE_THREADS of these. Grid: blocks, tokens.
template <int COUNT>
DEVICE void reduce(const TiledParams& p) {
    const MatrixParams& matrix = p.matrix;
    const Epilogue epilogue(p.output);
    const bool is_gated = epilogue.is_gated();
    const int output = (blockIdx.x * REDUCE_THREADS + threadIdx.x) * COUNT, token = blockIdx.y;
    const int row = is_gated ? output / 8 * 16 + output % 8 : output;
    OutputRow own[COUNT], up[COUNT];  // constants
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        own[k] = OutputRow(matrix, 0, row + k);
        if (is_gated) up[k] = OutputRow(matrix, 0, row + 8 + k);
    }
    wait_for_previous();
    if (row >= matrix.num_rows) return;
    void* const to = epilogue.address(epilogue.index(token, row));
    using Sums = Floats<COUNT>;
    Sums y, residual, up_sums = {};
#pragma unroll
    for (int k = 0; k < COUNT; k++) residual.of[k] = NO_RESIDUAL;
    if (epilogue.kind == ADD_RESIDUAL) residual = *(const Sums*)to;
    const i64 stride = (i64)p.num_tokens * matrix.num_rows;
    const float* from = p.partials + (i64)token * matrix.num_rows + row;
    const Sums sums = sum_of_partitions<4, Sums>(matrix.num_partitions, from, stride);
    if (is_gated) up_sums = sum_of_partitions<4, Sums>(matrix.num_partitions, from + 8, stride);
    Halves<COUNT> halves;
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        const float other = is_gated ? up[k].of(up_sums.of[k]) : 0.0f;
        y.of[k] = epilogue.value(own[k].of(sums.of[k]), other, residual.of[k]);
        halves.of[k] = to_half(y.of[k]);
    }
    if (epilogue.is_float())
        *(Sums*)to = y;
    else
        *(Halves<COUNT>*)to = halves;
}

KERNEL __launch_bounds__(REDUCE_THREADS) matmul_reduce(const __grid_constant__ TiledParams p) { reduce<1>(p); }

// This is for rows and outputs that come in quads.
KERNEL __launch_bounds__(REDUCE_THREADS) matmul_reduce_quads(const __grid_constant__ TiledParams p) { reduce<4>(p); }
