// The kernels of matmul_gemv.cuh, but for experts', in blocks of fewer warps, whose threads have registers for two
// places of weights also in formats of more bits; see matmul.cu.
#include "matmul_gemv.cuh"

constexpr int NARROW_WARPS = Layout<FORMAT>::narrow_warps;

KERNEL __launch_bounds__(32 * NARROW_WARPS, 1) matmul_gemv(const __grid_constant__ SmallBatchParams p) {
    matmul_gemv<GEMV_HALF, 2>(p);
}

KERNEL __launch_bounds__(32 * NARROW_WARPS, 1) matmul_gemv_normed(const __grid_constant__ SmallBatchParams p) {
    matmul_gemv<GEMV_NORMED, 2>(p);
}
