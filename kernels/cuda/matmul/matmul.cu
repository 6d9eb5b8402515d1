// y = x W^T on packed weights of one FORMAT, with the operation that follows; see matmul.cuh.
//   matmul_gemv         one token: x lies in shared memory, a warp has a tile of 16 outputs or a partition of one
//   matmul_gemv_normed  the same, and the norm before it
//   matmul_gemv_routed  the same for each token's experts that a router has chosen
//   matmul_gemv_summed  the same of one token, and the weighted sum of what its experts give
//   matmul_small_batch  two to four tokens
//   matmul_reduce       adds the partitions that several blocks of matmul_tiled_N have left
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
KERNEL __launch_bounds__(32 * MAX_BLOCK_WARPS, 1) matmul_gemv_routed(const __grid_constant__ SmallBatchParams p) {
    matmul_gemv<GEMV_ROUTED>(p);
}

KERNEL __launch_bounds__(256, 8) matmul_reduce(const __grid_constant__ TiledParams p) {
    wait_for_previous();
    const MatrixParams& matrix = p.matrix;
    const bool is_gated = Epilogue(p.output).is_gated();
    const int outputs = is_gated ? matrix.num_rows / 2 : matrix.num_rows;
    const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    if (i >= (i64)p.num_tokens * outputs) return;
    const int token = i / outputs, output = i % outputs;
    const int row = is_gated ? output / 8 * 16 + output % 8 : output;
    const i64 stride = (i64)p.num_tokens * matrix.num_rows;
    const float* from = p.partials + (i64)token * matrix.num_rows + row;
    Output out(matrix, p.output, 0, token, row);
    out.destination.load_residual();
    const float sum = sum_of_partitions<4>(matrix.num_partitions, from, stride);
    out.finish(sum, is_gated ? sum_of_partitions<4>(matrix.num_partitions, from + 8, stride) : 0.0f);
}
