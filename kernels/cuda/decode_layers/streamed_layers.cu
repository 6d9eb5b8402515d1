// All of a wide dense model for one token, from its id to logits and, where the row takes the largest, to the next id,
// in one kernel whose blocks stay, one for each SM. A warp has a partition of a tile of each product, and its units of
// weights come to a ring in shared memory ahead of what they multiply, also while the block waits for others. Some of
// the blocks attend while others multiply Q, K, V and output. Blocks exchange activations as words that say themselves
// whether they are there (layer_words.cuh); nothing else is between them, no barrier and no atomic.
//
// Sums are those of the other kernels bit for bit, as in decode_layers.cu, which is for models whose layers fit into
// the shared memory of all SMs.
//
// All blocks must be resident at once: there are no more than SMs.
#include "../common/wgmma.cuh"
#include "streamed_layers_attention.cuh"
#include "streamed_layers_products.cuh"

extern __shared__ __align__(128) u8 shared[];

KERNEL __launch_bounds__(32 * STREAM_WARPS, 1) streamed_layers(const __grid_constant__ StreamedLayersParams p) {
#if HAS_WGMMA  // elsewhere it is not launched
    BlockScratch& scratch = *(BlockScratch*)shared;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool attends = UnitFeed::attends(p);
    for (int i = threadIdx.x; i < MAX_STREAMED_SUMS; i += blockDim.x) scratch.sums[i] = -0.0f;
    if (threadIdx.x < NUM_PRODUCTS) {
        const BlockTiles tiles(p.products[threadIdx.x], blockIdx.x);
        scratch.tiles[threadIdx.x][0] = tiles.first, scratch.tiles[threadIdx.x][1] = tiles.count;
    }
    if (lane < NUM_PRODUCTS) scratch.items[warp][lane] = find_item(p.products[lane], blockIdx.x, warp);
    __syncthreads();
    UnitRing ring(p, scratch.items[warp], shared_address(scratch.scales[warp]));
    StreamedBlock block(p, scratch, ring);
    const WarpStep step(scratch);
    if (attends)
        ring.fill(StreamedAttention::weights_place(scratch), 1);
    else
        ring.fill(shared_address(scratch.ring[warp]), RING_UNITS);
    wait_for_previous();
    block.publish_embeddings();
    if (attends) {
        StreamedAttention::begin(p, scratch);
        StreamedAttention(p, scratch).copy_first(0);
    }
    step.set(0, QKV);
#pragma unroll 1
    while (true) {
        if (step.product() == OUTPUT && attends) {
            sync_block();  // all have read their units
            StreamedAttention(p, scratch).run(step.layer());
            ring.fill(shared_address(scratch.ring[warp]), RING_UNITS);
        } else {
            block.multiply(step);
        }
        const int layer = step.layer(), product = step.product();
        if (product == HEAD) break;
        if (product < DOWN || layer + 1 == p.cut.num_layers) {
            step.set(layer, product + 1);
            continue;
        }
        step.set(layer + 1, QKV);
        if (attends) {
            sync_block();  // all have read their rings
            ring.fill(StreamedAttention::weights_place(scratch), 1);
            StreamedAttention(p, scratch).copy_first(layer + 1);
        }
    }
    if (blockIdx.x == p.cut.attention_block && warp == 0) StreamedAttention(p, scratch).finish();
#endif
}
