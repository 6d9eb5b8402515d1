// y = x W^T in the tiles of matmul_tiled.cu, on Hopper, shared out evenly among as many blocks as the GPU runs at once
// (stream-K): where tiles are a few more than SMs, or fewer, no SM waits for others. A block has a range of all tiles'
// parts, in the order [tiles of outputs][tiles of tokens][parts of a tile]; sums are added in the same order as ever.
//   matmul_stream_k_128        cut into partitions; a tile is finished by the block that has the first one, which finds
//                              the sums of others in memory: these are the first work of their blocks, that its last
//   matmul_stream_k_256        whole; a tile's total of several partitions waits in memory, as there are no registers
//   matmul_stream_k_chain_256  of one partition: a block goes on from the sums of the one before
#include "matmul_tiled.cuh"

struct StreamKParams {
    HopperTiledParams hopper;
    int parts_of_block;  // of tiles, as `Cut` cuts them
    int num_places;      // of a block for sums of a tile, in `partials`: [blocks, places, TOKENS / 8, 256, 4]
};

#if HAS_WGMMA
#include "matmul_stream_k.cuh"

#define STREAM_K_KERNEL(NAME, TOKENS, CUT)                                                             \
    KERNEL __launch_bounds__(256, 1) matmul_stream_k_##NAME(const __grid_constant__ StreamKParams p) { \
        matmul_stream_k<TOKENS, CUT>(p);                                                               \
    }
STREAM_K_KERNEL(128, 128, PARTITIONS)
STREAM_K_KERNEL(256, 256, WHOLE)
STREAM_K_KERNEL(chain_256, 256, CHAIN)
#endif
