// y = x W^T for many tokens on Hopper, in tiles of TOKENS x 128 outputs, on weights that matmul_unpack has unpacked;
// see matmul.cuh. A block has one thread that asks for copies, and two warpgroups that multiply 64 outputs each. Blocks
// are persistent. A warpgroup finishes the outputs of a tile that it has summed up while the next tile's first products
// run, and the second one follows the first by some chunks: while one adds a partition's sums the other multiplies.
// FORMAT is one without `has_row_base`; what else it is makes no difference. EPILOGUE is the product's
// `EpilogueKind`.
#include "matmul.cuh"

struct UnpackedParams {
    TiledParams tiled;
    const u8* weights;            // [row tiles of 128, chunks, 128, 64] float16, swizzled as wgmma.cuh says
    int unit_chunks;              // of the matrix's format
    int group_tiles;              // tiles of outputs that take turns with each tile of tokens
    alignas(64) u8 x_map[128];    // tensor map of x, float16 [rows, width], boxes of 64 columns x TOKENS
    alignas(64) u8 out_map[128];  // of the product's columns of the output; boxes of a slice: 64 columns of float16, of
                                  // gated activations 32, or 32 columns of float32
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#include "matmul_unpacked.cuh"
#endif
