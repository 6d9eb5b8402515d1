// y = x W^T for any number of tokens, in tiles of TOKENS x 128 outputs a block; see matmul.cuh. Each of eight warps
// dequantises the weights of 16 outputs in registers, as the tensor cores' A operand; x is B, in shared memory.
//   matmul_tiled_hopper.cuh    on Hopper: the copy engine brings weights and x
//   matmul_tiled_ahead.cuh     there, of MXFP4: weights from further ahead
//   matmul_tiled_portable.cuh  elsewhere: each thread copies its share, ahead of time
// A block has all partitions and finishes what they add up to, or one, the one of its z, and leaves it to
// matmul_reduce.
#include "matmul_tiled.cuh"

#if HAS_WGMMA
#include "matmul_tiled_experts.cuh"

#define TILE_KERNEL(TOKENS, OF_ALL_FORMATS)                                  \
    KERNEL __launch_bounds__(256, Ring<TOKENS>::blocks_per_sm)               \
        matmul_tiled_##TOKENS(const __grid_constant__ HopperTiledParams t) { \
        if constexpr (FAR_AHEAD)                                             \
            matmul_tiled_ahead<TOKENS>(t);                                   \
        else if constexpr (OF_ALL_FORMATS)                                   \
            matmul_tiled<TOKENS>(t);                                         \
    }
TILE_KERNEL(16, true)
TILE_KERNEL(32, true)
TILE_KERNEL(48, false)
TILE_KERNEL(64, true)
TILE_KERNEL(80, false)
TILE_KERNEL(96, false)
TILE_KERNEL(128, true)
TILE_KERNEL(160, false)
TILE_KERNEL(256, true)

// Blocks that stay: see matmul_tiled_experts.cuh.
#define EXPERTS_KERNEL(TOKENS)                                                                         \
    KERNEL __launch_bounds__(256, StayingRing<FORMAT, TOKENS>::blocks_per_sm)                          \
        matmul_tiled_experts_##TOKENS(const __grid_constant__ HopperTiledParams t) {                   \
        if constexpr (Layout<FORMAT>::is_k && !Layout<FORMAT>::has_grid) experts::multiply<TOKENS>(t); \
    }
EXPERTS_KERNEL(64)
EXPERTS_KERNEL(128)
#else
#include "matmul_tiled_portable.cuh"
#endif
