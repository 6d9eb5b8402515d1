// All of a dense model for a few tokens, from their ids to logits and, where each takes the largest, to the next ids,
// in one kernel whose blocks stay: for few sequences, kernels that follow each other take longer to hand over than to
// compute. A block has the same rows of the weights in each layer and copies the next layer's while it works on this
// one's. Blocks exchange activations as words that say themselves whether they are there (decode_layers.cuh); nothing
// else is between them, no barrier and no atomic.
//
// Sums are those of the other kernels bit for bit: the same split-K partitions, each one chain of tensor core products,
// added in the same order; norms, attention and SwiGLU are made of the same functions.
//
// All blocks must be resident at once: there are no more than SMs.
#include "../common/wgmma.cuh"
#include "decode_layers_attention.cuh"
#include "decode_layers_products.cuh"

extern __shared__ __align__(128) u8 shared[];

KERNEL __launch_bounds__(32 * LAYER_WARPS, 1) decode_layers(const __grid_constant__ DecodeLayersParams p) {
#if HAS_WGMMA  // elsewhere it is not launched
    if (blockIdx.x < p.cut.attention_block)
        ProductBlock(p, shared).run();
    else
        run_attention(p, shared);
#endif
}

struct ClearParams {
    uint4* words;
    i32 num_quads;
};

// Makes words EMPTY. Overlaps the previous kernel, which does not use them.
KERNEL __launch_bounds__(256) decode_layers_clear(const __grid_constant__ ClearParams p) {
    start_next();
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < p.num_quads) p.words[i] = {EMPTY, EMPTY, EMPTY, EMPTY};
    wait_for_previous();
}
