// y = x W^T on Hopper for matrices of few outputs (sliced-K): a block's warpgroups make different partitions of the
// same tile of TOKENS x 64 outputs at the same time, and pass its total on to each other through shared memory, in the
// order of partitions. So a block unpacks half as many weights as one of matmul_tiled.cu, and no sums leave an SM.
#include "matmul_tiled.cuh"

#if HAS_WGMMA
#include "matmul_sliced_k.cuh"

// A tile for which shared memory has no room has no kernel.
#define SLICED_K_KERNEL(TOKENS)                                                           \
    KERNEL __launch_bounds__(SLICED_THREADS, 1)                                           \
        matmul_sliced_k_##TOKENS(const __grid_constant__ HopperTiledParams t) {           \
        if constexpr (SlicedKRing<FORMAT, TOKENS>::num_bytes) matmul_sliced_k<TOKENS>(t); \
    }
SLICED_K_KERNEL(32)
SLICED_K_KERNEL(48)
SLICED_K_KERNEL(64)
SLICED_K_KERNEL(80)
#endif
