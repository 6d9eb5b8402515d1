// Mixture of experts around the products: norm and router, the list of tiles, the weighted sum.
#include "experts.cuh"
#include "norm.cuh"

struct RouteParams {
    const float* x;       // [num_tokens, width] residual stream
    const float* weight;  // [num_experts, width] router
    const float* bias;    // [num_experts]
    u16* normed;          // [num_tokens, width]
    float* logits;        // [num_tokens, num_experts] moe_logits
    int* experts;         // [num_tokens, num_used] moe_route: by rank
    float* shares;        // [num_tokens, num_used] moe_route: softmax over the chosen
    NormParams norm;
    int num_experts, num_used;
};

DEVICE float add_products(float sum, float4 w, float4 v) {
    sum = fmaf(w.x, v.x, sum), sum = fmaf(w.y, v.y, sum);
    return fmaf(w.w, v.w, fmaf(w.z, v.z, sum));
}

DEVICE void store_normed(const RouteParams& p, int token, int column, float4 n) {
    *(uint2*)(p.normed + (i64)token * p.norm.width + column) = make_uint2(pack_half2(n.x, n.y), pack_half2(n.z, n.w));
}

// A logit is the sum of NORM_PARTS parts, cut as a norm cuts its row.
//
// For few tokens: a block of NORM_PARTS warps for each (expert, token), so that the router's weights come through many
// processors. Who uses the logits chooses: `expert_of_rank`.
KERNEL __launch_bounds__(32 * NORM_PARTS) moe_logits(const __grid_constant__ RouteParams p) {
    const int expert = blockIdx.x, token = blockIdx.y, part = threadIdx.x / 32;
    const float* weight = p.weight + (i64)expert * p.norm.width;
    // Its weights are constant: their way from memory need not wait.
    for (int i = threadIdx.x; i * 32 < p.norm.width; i += blockDim.x)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(weight + i * 32));
    const float bias = p.bias[expert];
    wait_for_previous();
    __shared__ float norm_sums[2 * NORM_PARTS], sums[NORM_PARTS];
    float sum = 0.0f;
    normalise_row(p.norm, p.x + (i64)token * p.norm.width, norm_sums, [&](int column, float4 n) {
        sum = add_products(sum, *(const float4*)(weight + column), n);
        if (expert == 0) store_normed(p, token, column, n);
    });
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[part] = sum;
    __syncthreads();
    if (threadIdx.x == 0) p.logits[(i64)token * p.num_experts + expert] = sum_of_parts(sums) + bias;
}

// For many: a block for each token. Dynamic shared memory: float [width + (NORM_PARTS + 1) num_experts + 2 NORM_PARTS].
KERNEL __launch_bounds__(1024) moe_route(const __grid_constant__ RouteParams p) {
    wait_for_previous();
    extern __shared__ __align__(16) float shared[];
    float *row = shared, *parts = shared + p.norm.width, *logits = parts + NORM_PARTS * p.num_experts;
    const int token = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, quads = p.norm.width / 4;
    normalise_row(p.norm, p.x + (i64)token * p.norm.width, logits + p.num_experts, [&](int column, float4 n) {
        *(float4*)(row + column) = n;
        store_normed(p, token, column, n);
    });
    __syncthreads();
    for (int task = warp; task < p.num_experts * NORM_PARTS; task += blockDim.x / 32) {
        const float4* weight = (const float4*)(p.weight + (i64)(task / NORM_PARTS) * p.norm.width);
        float sum = 0.0f;
#pragma unroll 4
        for (int i = task % NORM_PARTS * 32 + lane; i < quads; i += 32 * NORM_PARTS)
            sum = add_products(sum, weight[i], ((const float4*)row)[i]);
        sum = warp_sum(sum);
        if (lane == 0) parts[task] = sum;
    }
    __syncthreads();
    for (int expert = threadIdx.x; expert < p.num_experts; expert += blockDim.x)
        logits[expert] = sum_of_parts(parts + expert * NORM_PARTS) + p.bias[expert];
    __syncthreads();
    if (warp) return;
    share_out(logits, p.num_experts, p.num_used, [&](int rank, int expert, float share) {
        p.experts[token * p.num_used + rank] = expert;
        p.shares[token * p.num_used + rank] = share;
    });
}

struct PlanParams {
    const int* experts;  // [num_pairs] of each (token, rank)
    int* rows;           // [num_pairs] token of each pair, pairs sorted by expert
    int* places;         // [num_pairs] where each pair went
    int4* tiles;         // [max_tiles] (expert, first pair, number of pairs, -)
    int* num_tiles;      // [1]
    int num_pairs, num_experts, num_used, tile_pairs;
};

constexpr int PLAN_WARPS = 32;

// Calls use(pair, expert, place) for the pairs of this warp's share; places count on from `next_places` [num_experts], which
// are the warp's own.
template <typename Use>
DEVICE void for_share(const PlanParams& p, int* next_places, Use use) {
    const int share = (p.num_pairs + PLAN_WARPS * 32 - 1) / (PLAN_WARPS * 32) * 32, lane = threadIdx.x % 32;
    const int first = threadIdx.x / 32 * share, end = min(first + share, p.num_pairs);
    int next = first + lane < end ? p.experts[first + lane] : -1;  // fetched a round ahead
    for (int pair = first + lane; pair - lane < end; pair += 32) {
        const int expert = next;
        next = pair + 32 < end ? p.experts[pair + 32] : -1;
        const u32 members = __match_any_sync(ALL_LANES, expert);
        const int leader = __ffs(members) - 1;
        int place = 0;
        if (lane == leader && expert >= 0) {
            place = next_places[expert];
            next_places[expert] = place + __popc(members);
        }
        place = __shfl_sync(ALL_LANES, place, leader) + __popc(members & ((1u << lane) - 1));
        if (expert >= 0) use(pair, expert, place);
        __syncwarp();
    }
}

// One block; a warp has a share of the pairs, in order. Dynamic shared memory: int [(PLAN_WARPS + 2) * (num_experts + 1)].
KERNEL __launch_bounds__(32 * PLAN_WARPS) moe_plan(const __grid_constant__ PlanParams p) {
    wait_for_previous();
    extern __shared__ int starts[];          // [num_experts + 1]
    int* first_tile = starts + p.num_experts + 1;  // [num_experts + 1]
    int* counts = first_tile + p.num_experts + 1;  // [PLAN_WARPS, num_experts] pairs; then, of the warps before
    int* own_counts = counts + threadIdx.x / 32 * p.num_experts;
    for (int i = threadIdx.x; i < PLAN_WARPS * p.num_experts; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    for_share(p, own_counts, [](int, int, int) {});
    __syncthreads();
    for (int expert = threadIdx.x; expert < p.num_experts; expert += blockDim.x) {
        int sum = 0;
        for (int warp = 0; warp < PLAN_WARPS; warp++) {
            int& count = counts[warp * p.num_experts + expert];
            const int before = sum;
            sum += count, count = before;
        }
        starts[expert] = sum;
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
    for_share(p, own_counts, [&](int pair, int expert, int place) {
        place += starts[expert];
        p.rows[place] = pair / p.num_used;
        p.places[pair] = place;
    });
    for (int expert = threadIdx.x / 32; expert < p.num_experts; expert += PLAN_WARPS)
        for (int i = threadIdx.x % 32; i < first_tile[expert + 1] - first_tile[expert]; i += 32) {
            const int first = starts[expert] + i * p.tile_pairs;
            p.tiles[first_tile[expert] + i] =
                make_int4(expert, first, min(p.tile_pairs, starts[expert + 1] - first), 0);
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
    wait_for_previous();
    const uint4* from = (const uint4*)(p.normed + (i64)p.rows[blockIdx.x] * p.width);
    uint4* to = (uint4*)(p.out + (i64)blockIdx.x * p.width);
    for (int i = threadIdx.x; i < p.width / 8; i += 128) to[i] = from[i];
}

struct CombineParams {
    const float* results;  // [num_tokens * num_used, width] of the experts
    const int* places;     // [num_tokens, num_used] rows of `results`; null: in order
    const float* shares;   // [num_tokens, num_used]; null: as `logits` say
    const float* logits;   // [num_tokens, num_experts]
    float* out;            // [num_tokens, width] residual stream, added to
    int num_tokens, num_experts, num_used, width;
};

constexpr int COMBINED_AHEAD = 4;  // experts whose results are fetched before the first is used

// Dynamic shared memory: float [num_used].
KERNEL __launch_bounds__(256) moe_combine(const __grid_constant__ CombineParams p) {
    wait_for_previous();
    extern __shared__ __align__(16) float shared[];
    const int quads = p.width / 4, token = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    const bool inside = i < quads;
    float4* to = (float4*)(p.out + (i64)token * p.width) + i;
    float4 sum = inside ? *to : float4{}, ahead[COMBINED_AHEAD];
    auto result = [&](int rank) {
        const int pair = token * p.num_used + rank, row = p.places ? p.places[pair] : pair;
        return ((const float4*)(p.results + (i64)row * p.width))[i];
    };
#pragma unroll
    for (int rank = 0; rank < COMBINED_AHEAD; rank++)
        if (inside && rank < p.num_used) ahead[rank] = result(rank);
    const float* shares = p.shares + token * p.num_used;
    if (!p.shares) {
        if (threadIdx.x < 32)
            share_out(p.logits + (i64)token * p.num_experts, p.num_experts, p.num_used,
                      [&](int rank, int, float share) { shared[rank] = share; });
        __syncthreads();
        shares = shared;
    }
    if (!inside) return;
    auto add = [&](float share, float4 v) {
        sum.x = fmaf(share, v.x, sum.x), sum.y = fmaf(share, v.y, sum.y);
        sum.z = fmaf(share, v.z, sum.z), sum.w = fmaf(share, v.w, sum.w);
    };
#pragma unroll
    for (int rank = 0; rank < COMBINED_AHEAD; rank++)
        if (rank < p.num_used) add(shares[rank], ahead[rank]);
    for (int rank = COMBINED_AHEAD; rank < p.num_used; rank++) add(shares[rank], result(rank));
    *to = sum;
}
