// Mixture of experts around the products: norm and router, the list of tiles, the weighted sum.
#include "experts.cuh"
#include "../norm/norm.cuh"

extern __shared__ __align__(16) float shared[];

struct RouteParams {
    const float* x;             // [num_tokens, width] residual stream
    const float* weight;        // [num_experts, width] router
    const float* bias;          // [num_experts]
    const float* input_weight;  // [width], or null: by what `normed` differs from what the router is given
    u16* normed;                // [num_tokens, width]
    float* logits;              // [num_tokens, num_experts] moe_logits
    int* experts;               // [num_tokens, num_used] moe_route*: by rank
    float* routing_weights;     // [num_tokens, num_used] moe_route*: softmax over the chosen
    NormParams norm;
    int num_tokens, num_experts, num_used;
};

DEVICE float add_products(float sum, float4 w, float4 v) {
    sum = fmaf(w.x, v.x, sum), sum = fmaf(w.y, v.y, sum);
    return fmaf(w.w, v.w, fmaf(w.z, v.z, sum));
}

DEVICE void store_normed(const RouteParams& p, int token, int column, float4 n) {
    if (p.input_weight) {
        const float4 w = *(const float4*)(p.input_weight + column);
        n = float4{n.x * w.x, n.y * w.y, n.z * w.z, n.w * w.w};
    }
    *(uint2*)(p.normed + (i64)token * p.norm.width + column) = pack_quad(n);
}

// A logit is the sum of NORM_PARTITIONS partitions, cut as a norm cuts its row.
//
// This is for up to four tokens, with a block of NORM_PARTITIONS warps for each (expert, token), so that many SMs
// read the router's weights. The products that use the logits choose: `expert_of_rank`.
KERNEL __launch_bounds__(32 * NORM_PARTITIONS) moe_logits(const __grid_constant__ RouteParams p) {
    const int expert = blockIdx.x, token = blockIdx.y, partition = threadIdx.x / 32;
    const float* weight = p.weight + (i64)expert * p.norm.width;
    // Its weights are constant: loading them need not wait.
    for (int i = threadIdx.x; i * 32 < p.norm.width; i += blockDim.x)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(weight + i * 32));
    const float bias = p.bias[expert];
    wait_for_previous();
    __shared__ float norm_sums[2 * NORM_PARTITIONS], sums[NORM_PARTITIONS];
    float sum = 0.0f;
    normalise_row(p.norm, p.x + (i64)token * p.norm.width, norm_sums, [&](int column, float4 n) {
        sum = add_products(sum, *(const float4*)(weight + column), n);
        if (expert == 0) store_normed(p, token, column, n);
    });
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[partition] = sum;
    __syncthreads();
    if (threadIdx.x == 0) p.logits[(i64)token * p.num_experts + expert] = row_sum(sums) + bias;
}

// Calls use(column) for what this lane has of partition `partition` of a row, in order, four columns at a time.
template <int UNROLLED = 1, typename Use>
DEVICE void for_columns(int partition, int width, Use use) {
#pragma unroll UNROLLED
    for (int column = (partition * 32 + threadIdx.x % 32) * 4; column < width; column += PARTITION_STEP) use(column);
}

// This is for more tokens. Warps share a row's columns as a norm's partitions, and groups of NORM_PARTITIONS warps the
// experts. Rows lie in shared memory, normed; of the router's weights a lane uses what it loads for all TOKENS of the
// block, and of a row what it loads for EXPERTS experts. Dynamic shared memory: float [TOKENS][width + 2
// NORM_PARTITIONS + (NORM_PARTITIONS + 1) num_experts].
template <int TOKENS, int EXPERTS>
DEVICE void route(const RouteParams& p) {
    const int width = p.norm.width, first = blockIdx.x * TOKENS, num_tokens = min(TOKENS, p.num_tokens - first);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
    const int partition = warp % NORM_PARTITIONS, group = warp / NORM_PARTITIONS;
    float *rows = shared, *norm_sums = rows + TOKENS * width;    // [TOKENS][width], [2][TOKENS][NORM_PARTITIONS]
    float* partials = norm_sums + 2 * TOKENS * NORM_PARTITIONS;  // [TOKENS][num_experts][NORM_PARTITIONS]
    float* logits = partials + TOKENS * p.num_experts * NORM_PARTITIONS;  // [TOKENS][num_experts]
    auto load = [&](int token, int column) {  // where there are fewer tokens, the last one is done again
        return *(const float4*)(p.x + (i64)(first + min(token, num_tokens - 1)) * width + column);
    };
    auto put_partitions = [&](float* to, int stride, float (&sums)[TOKENS]) {  // to[token * stride + partition]
        const float sum = warp_sums(sums);
        if (lane % (32 / TOKENS) == 0) to[lane / (32 / TOKENS) * stride + partition] = sum;
    };

    wait_for_previous();
    float shifts[TOKENS] = {}, factors[TOKENS];
    if (p.norm.bias) {
        float sums[TOKENS] = {};
        for_columns(partition, width, [&](int column) {
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const float4 v = load(t, column);
                sums[t] += (v.x + v.y) + (v.z + v.w);
            }
        });
        if (group == 0) put_partitions(norm_sums + TOKENS * NORM_PARTITIONS, NORM_PARTITIONS, sums);
        __syncthreads();
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            shifts[t] = minus_mean(p.norm, row_sum(norm_sums + (TOKENS + t) * NORM_PARTITIONS));
    }
    float squares[TOKENS] = {};
    for_columns(partition, width, [&](int column) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) squares[t] = add_squares(squares[t], sum_of(load(t, column), shifts[t]));
    });
    if (group == 0) put_partitions(norm_sums, NORM_PARTITIONS, squares);
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TOKENS; t++) factors[t] = norm_factor(p.norm, row_sum(norm_sums + t * NORM_PARTITIONS));
    if (group == 0)
        for_columns(partition, width, [&](int column) {
            const float4 weight = *(const float4*)(p.norm.weight + column);
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const float4 n = scale_quad(p.norm, weight, column, sum_of(load(t, column), shifts[t]), factors[t]);
                *(float4*)(rows + t * width + column) = n;
                if (t < num_tokens) store_normed(p, first + t, column, n);
            }
        });
    __syncthreads();

    for (int expert = group * EXPERTS; expert < p.num_experts; expert += num_warps / NORM_PARTITIONS * EXPERTS) {
        float sums[EXPERTS][TOKENS] = {};
        for_columns<TOKENS == 1 ? 1 : 3>(partition, width, [&](int column) {
            float4 weights[EXPERTS];
#pragma unroll
            for (int i = 0; i < EXPERTS; i++)
                weights[i] = *(const float4*)(p.weight + (i64)min(expert + i, p.num_experts - 1) * width + column);
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const float4 v = *(const float4*)(rows + t * width + column);
#pragma unroll
                for (int i = 0; i < EXPERTS; i++) sums[i][t] = add_products(sums[i][t], weights[i], v);
            }
        });
#pragma unroll
        for (int i = 0; i < EXPERTS; i++)
            if (expert + i < p.num_experts)
                put_partitions(partials + (expert + i) * NORM_PARTITIONS, p.num_experts * NORM_PARTITIONS, sums[i]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TOKENS * p.num_experts; i += blockDim.x)
        logits[i] = row_sum(partials + i * NORM_PARTITIONS) + p.bias[i % p.num_experts];
    __syncthreads();
    for (int t = warp; t < num_tokens; t += num_warps) {
        const float* own_logits = logits + t * p.num_experts;
        Ranking ranking(own_logits, p.num_experts);
        int expert = 0;
        for (int rank = 0; rank < p.num_used; rank++) {
            const int found = ranking.next();
            if (lane == rank) expert = found;
        }
        const float weight = routing_weight(own_logits[expert], p.num_used);
        if (lane >= p.num_used) continue;
        p.experts[(first + t) * p.num_used + lane] = expert;
        p.routing_weights[(first + t) * p.num_used + lane] = weight;
    }
}

KERNEL __launch_bounds__(1024) moe_route(const __grid_constant__ RouteParams p) { route<1, ROUTE_EXPERTS>(p); }

// This is for many tokens.
KERNEL __launch_bounds__(32 * NORM_PARTITIONS, 2) moe_route_many(const __grid_constant__ RouteParams p) {
    route<ROUTE_TOKENS, 4>(p);
}

struct PlanParams {
    const int* experts;  // [num_pairs] of each (token, rank)
    int* rows;           // [num_pairs] token of each pair, pairs sorted by expert
    int* places;         // [num_pairs] where each pair went
    int4* tiles;         // [max_tiles] (expert, first pair, number of pairs, -)
    int* num_tiles;      // [1]
    int num_pairs, num_experts, num_used, tile_pairs;
};

// Calls use(pair, expert, place) for the pairs of this warp's share; places count on from `next_places` [num_experts],
// which are the warp's own.
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

// The sum of `value` over the lanes up to this one.
DEVICE int sum_up_to_lane(int value) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(ALL_LANES, value, distance);
        if (threadIdx.x % 32 >= distance) value += before;
    }
    return value;
}

// Runs as one block, each warp of which has a share of the pairs, in order.
// Dynamic shared memory: int [(PLAN_WARPS + 2) * (num_experts + 1)].
KERNEL __launch_bounds__(32 * PLAN_WARPS) moe_plan(const __grid_constant__ PlanParams p) {
    wait_for_previous();
    extern __shared__ int starts[];                // [num_experts + 1]
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
    if (threadIdx.x < 32) {
        int pairs = 0, tiles = 0;  // of the experts before
        for (int first = 0; first <= p.num_experts; first += 32) {
            const int expert = first + threadIdx.x, count = expert < p.num_experts ? starts[expert] : 0;
            const int own_tiles = (count + p.tile_pairs - 1) / p.tile_pairs;
            const int end = pairs + sum_up_to_lane(count), end_tile = tiles + sum_up_to_lane(own_tiles);
            if (expert <= p.num_experts) starts[expert] = end - count, first_tile[expert] = end_tile - own_tiles;
            pairs = __shfl_sync(ALL_LANES, end, 31), tiles = __shfl_sync(ALL_LANES, end_tile, 31);
        }
        if (threadIdx.x == 0) *p.num_tiles = tiles;
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

// Each block copies the row of one pair.
KERNEL __launch_bounds__(128) moe_gather(const __grid_constant__ GatherParams p) {
    wait_for_previous();
    const uint4* from = (const uint4*)(p.normed + (i64)p.rows[blockIdx.x] * p.width);
    uint4* to = (uint4*)(p.out + (i64)blockIdx.x * p.width);
    for (int i = threadIdx.x; i < p.width / 8; i += 128) to[i] = from[i];
}

struct CombineParams {
    const float* results;          // [num_tokens * num_used, width] of the experts
    const int* places;             // [num_tokens, num_used] rows of `results`; null: in order
    const float* routing_weights;  // [num_tokens, num_used]; null: as `logits` say
    const float* logits;           // [num_tokens, num_experts]
    const int* experts;            // [num_tokens, num_used] by rank
    const float* output_scales;    // [num_experts] of the experts' results; null: 1
    float* out;                    // [num_tokens, width] residual stream, added to or stored
    int num_tokens, num_experts, num_used, width;
    int adds;
};

constexpr int COMBINED_AHEAD = 8;  // experts whose results are fetched before the first is used

// Dynamic shared memory: float [num_used].
KERNEL __launch_bounds__(256) moe_combine(const __grid_constant__ CombineParams p) {
    const int quads = p.width / 4, token = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    const bool inside = i < quads;
    // All but the results was there before the previous kernel began.
    acquire();
    float4* to = (float4*)(p.out + (i64)token * p.width) + i;
    float4 sum = inside && p.adds ? *to : float4{}, ahead[COMBINED_AHEAD];
    const float* routing_weights = p.routing_weights + token * p.num_used;
    if (!p.routing_weights) {
        if (threadIdx.x < 32) {
            const bool is_used = threadIdx.x < p.num_used;
            const int expert = is_used ? p.experts[token * p.num_used + threadIdx.x] : 0;
            const float weight = routing_weight(p.logits[(i64)token * p.num_experts + expert], p.num_used);
            if (is_used) shared[threadIdx.x] = weight;
        }
        __syncthreads();
        routing_weights = shared;
    }
    wait_for_previous();
    if (!inside) return;
    auto result = [&](int rank) {
        const int pair = token * p.num_used + rank, row = p.places ? p.places[pair] : pair;
        return ((const float4*)(p.results + (i64)row * p.width))[i];
    };
#pragma unroll
    for (int rank = 0; rank < COMBINED_AHEAD; rank++)
        if (rank < p.num_used) ahead[rank] = result(rank);
    auto add = [&](int rank, float4 v) {
        float routing_weight = routing_weights[rank];
        if (p.output_scales) routing_weight *= p.output_scales[p.experts[token * p.num_used + rank]];
        sum.x = fmaf(routing_weight, v.x, sum.x), sum.y = fmaf(routing_weight, v.y, sum.y);
        sum.z = fmaf(routing_weight, v.z, sum.z), sum.w = fmaf(routing_weight, v.w, sum.w);
    };
#pragma unroll
    for (int rank = 0; rank < COMBINED_AHEAD; rank++)
        if (rank < p.num_used) add(rank, ahead[rank]);
    for (int rank = COMBINED_AHEAD; rank < p.num_used; rank++) add(rank, result(rank));
    *to = sum;
}
