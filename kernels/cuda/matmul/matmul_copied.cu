// y = x W^T for many tokens on Hopper, on a float16 copy of the weights that stays in memory beside the packed ones, in
// tiles of 128 tokens x ROWS outputs; see matmul.cuh. A block has one thread that asks for copies, and two warpgroups
// that multiply 64 tokens each: rows of weights are the columns of their products, so that a tile can have as many as
// give all SMs an equal share. Blocks are persistent. FORMAT is one without `has_row_base`; what else it is makes no
// difference.
#include "matmul.cuh"

struct CopiedParams {
    TiledParams tiled;
    const u8* weights;          // [chunks, padded_rows, 64] float16, swizzled as wgmma.cuh says
    int padded_rows;            // a multiple of 8
    int unit_chunks;            // of the matrix's format
    alignas(64) u8 x_map[128];  // tensor map of x, float16 [rows, width], boxes of 64 columns x 128 tokens
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#include "matmul_copied.cuh"
#if ROWS <= 64
#include "matmul_copied_slices.cuh"
#endif
#endif
