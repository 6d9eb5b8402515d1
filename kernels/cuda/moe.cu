// Mixture of experts around the products: norm and router, the list of tiles, the weighted sum.
#include "norm.cuh"

struct RouteParams {
    const float* x;       // [num_tokens, width] residual stream
    const float* weight;  // [num_experts, width] router
    const float* bias;    // [num_experts]
    u16* normed;          // [num_tokens, width]
    int* experts;         // [num_tokens, num_used] by falling logit; of equals the lower expert first
    int* tokens;          // [num_tokens, num_used] the token itself: which row of `normed` the pair reads
    float* shares;        // [num_tokens, num_used] softmax over the chosen
    NormParams norm;
    int num_experts, num_used;
};

// A block for each token. Dynamic shared memory: float [width + num_experts + 2 NORM_PARTS].
KERNEL __launch_bounds__(1024) moe_route(const __grid_constant__ RouteParams p) {
    let_next_start();
    prefetch_norm(p.norm);
    wait_for_previous();
    extern __shared__ __align__(16) float shared[];
    float *row = shared, *logits = shared + p.norm.width;
    const int token = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, quads = p.norm.width / 4;
    normalise_rows(
        p.norm, 1, logits + p.num_experts, [&](int) { return p.x + (i64)token * p.norm.width; },
        [&](int, int column, float4 n) {
            *(float4*)(row + column) = n;
            *(uint2*)(p.normed + (i64)token * p.norm.width + column) =
                make_uint2(pack_half2(n.x, n.y), pack_half2(n.z, n.w));
        });
    __syncthreads();
    for (int expert = warp; expert < p.num_experts; expert += blockDim.x / 32) {
        const float4* weight = (const float4*)(p.weight + (i64)expert * p.norm.width);
        float sum = 0.0f;
#pragma unroll 8
        for (int i = lane; i < quads; i += 32) {
            float4 w = weight[i], v = ((const float4*)row)[i];
            sum = fmaf(w.x, v.x, sum), sum = fmaf(w.y, v.y, sum), sum = fmaf(w.z, v.z, sum), sum = fmaf(w.w, v.w, sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) logits[expert] = sum + p.bias[expert];
    }
    __syncthreads();
    if (warp) return;
    float first = 0.0f, total = 0.0f;
    for (int rank = 0; rank < p.num_used; rank++) {
        float best = NEGATIVE_INFINITY;
        int which = p.num_experts;
        for (int expert = lane; expert < p.num_experts; expert += 32)
            if (logits[expert] > best) best = logits[expert], which = expert;
#pragma unroll
        for (int distance = 16; distance; distance >>= 1) {
            float other = __shfl_xor_sync(ALL_LANES, best, distance);
            int other_which = __shfl_xor_sync(ALL_LANES, which, distance);
            if (other > best || (other == best && other_which < which)) best = other, which = other_which;
        }
        if (which == p.num_experts) which = 0;  // nothing but NaN: the sampler will see it
        if (rank == 0) first = best;
        const float share = expf(best - first);
        total += share;
        __syncwarp();  // all have read the logits
        if (lane == 0) {
            logits[which] = NEGATIVE_INFINITY;
            p.experts[token * p.num_used + rank] = which;
            p.tokens[token * p.num_used + rank] = token;
            p.shares[token * p.num_used + rank] = share;
        }
        __syncwarp();
    }
    if (lane < p.num_used) p.shares[token * p.num_used + lane] /= total;
}

struct PlanParams {
    const int* experts;  // [num_pairs] of each (token, rank)
    int* rows;           // [num_pairs] token of each pair, pairs sorted by expert
    int* places;         // [num_pairs] where each pair went
    int4* tiles;         // [max_tiles] (expert, first pair, number of pairs, -)
    int* num_tiles;      // [1]
    int num_pairs, num_experts, num_used, tile_pairs;
};

// One block of 32 warps; a warp takes every 32nd expert. Dynamic shared memory: int [2][num_experts + 1].
KERNEL __launch_bounds__(1024) moe_plan(const __grid_constant__ PlanParams p) {
    let_next_start();
    wait_for_previous();
    extern __shared__ int starts[];
    int* first_tile = starts + p.num_experts + 1;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int expert = warp; expert < p.num_experts; expert += 32) {
        int count = 0;
        for (int pair = lane; pair < p.num_pairs; pair += 32) count += p.experts[pair] == expert;
        count = __reduce_add_sync(ALL_LANES, count);
        if (lane == 0) starts[expert] = count;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int pairs = 0, tiles = 0;
        for (int expert = 0; expert < p.num_experts; expert++) {
            const int count = starts[expert];
            starts[expert] = pairs, first_tile[expert] = tiles;
            pairs += count, tiles += (count + p.tile_pairs - 1) / p.tile_pairs;
        }
        starts[p.num_experts] = pairs, first_tile[p.num_experts] = tiles;
        *p.num_tiles = tiles;
    }
    __syncthreads();
    for (int expert = warp; expert < p.num_experts; expert += 32) {
        int next = starts[expert];
        const int end = starts[expert + 1];
        for (int from = 0; from < p.num_pairs && next < end; from += 32) {
            const int pair = from + lane;
            const bool mine = pair < p.num_pairs && p.experts[pair] == expert;
            const u32 members = __ballot_sync(ALL_LANES, mine);
            if (mine) {
                const int place = next + __popc(members & ((1u << lane) - 1));
                p.rows[place] = pair / p.num_used;
                p.places[pair] = place;
            }
            next += __popc(members);
        }
        const int tiles = first_tile[expert + 1] - first_tile[expert];
        for (int i = lane; i < tiles; i += 32) {
            const int first = starts[expert] + i * p.tile_pairs;
            p.tiles[first_tile[expert] + i] = make_int4(expert, first, min(p.tile_pairs, end - first), 0);
        }
    }
}

struct GatherParams {
    const u16* normed;  // [num_tokens, width]
    const int* rows;    // [num_pairs] token of each pair, pairs sorted by expert
    u16* out;           // [num_pairs, width]
    int width;          // a multiple of 8
};

// A block a pair.
KERNEL __launch_bounds__(128) moe_gather(const __grid_constant__ GatherParams p) {
    let_next_start();
    wait_for_previous();
    const uint4* from = (const uint4*)(p.normed + (i64)p.rows[blockIdx.x] * p.width);
    uint4* to = (uint4*)(p.out + (i64)blockIdx.x * p.width);
    for (int i = threadIdx.x; i < p.width / 8; i += 128) to[i] = from[i];
}

struct CombineParams {
    const float* results;  // [num_tokens * num_used, width] of the experts
    const int* places;     // [num_tokens, num_used] rows of `results`; null: in order
    const float* shares;   // [num_tokens, num_used]
    float* out;            // [num_tokens, width] residual stream, added to
    int num_tokens, num_used, width;
};

KERNEL __launch_bounds__(256) moe_combine(const __grid_constant__ CombineParams p) {
    let_next_start();
    wait_for_previous();
    const int quads = p.width / 4, token = blockIdx.y, i = blockIdx.x * 256 + threadIdx.x;
    if (i >= quads) return;
    float4* to = (float4*)(p.out + (i64)token * p.width) + i;
    float4 sum = *to;
    for (int rank = 0; rank < p.num_used; rank++) {
        const int pair = token * p.num_used + rank, row = p.places ? p.places[pair] : pair;
        const float share = p.shares[pair];
        const float4 v = ((const float4*)(p.results + (i64)row * p.width))[i];
        sum.x = fmaf(share, v.x, sum.x), sum.y = fmaf(share, v.y, sum.y);
        sum.z = fmaf(share, v.z, sum.z), sum.w = fmaf(share, v.w, sum.w);
    }
    *to = sum;
}
