// Experts in MXFP4 and K formats on Hopper: y = x W^T in tiles of one expert each, with the bits of matmul_tiled.cu;
// see matmul.cuh. A block has a warpgroup whose threads ask for copies and GROUPS that multiply 64 outputs each. It
// takes one tile after the other: x and weights of the next one are on their way while it stores. A tile of up to SIZE
// tokens is multiplied about as wide as it is. With HAS_PARTITIONS the matrix may have several.
#include "matmul.cuh"

struct GroupedParams {
    TiledParams tiled;
    alignas(64) u8 x_maps[MOST_WIDTHS * 128];  // tensor maps of x, float16 [rows, width], boxes of 64 columns x a width
    int follows_plan;                          // the previous kernel makes the list of tiles
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#include "matmul_grouped.cuh"
#endif
