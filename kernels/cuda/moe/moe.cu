// Mixture of experts around the products: norm and router, the list of tiles, the weighted sum.
#include "experts.cuh"
#include "../norm/norm.cuh"

extern __shared__ __align__(16) float shared[];

struct RouteParams {
    const float* x;             // [num_tokens, width] residual stream
    const float* weight;        // [num_experts, width] router
    const float* bias;          // [num_experts]
    const float* input_weight;  // [width], or null: by what `normed` differs from what the router is given
    const float* shared_gate;   // [width] moe_logits: of the expert that all tokens go through
    float* shares;              // [num_tokens] moe_logits: what it is multiplied by
    u16* normed;                // [num_tokens, width]
    float* logits;              // [num_tokens, num_experts]
    int* experts;               // [num_tokens, num_used] moe_choose: by rank; moe_logits: -1
    float* routing_weights;     // [num_tokens, num_used] moe_choose: softmax over the chosen
    NormParams norm;
    int num_tokens, num_experts, num_used;
    int block_experts;  // moe_logits_*: a multiple of 4
};

DEVICE float add_products(float sum, float4 w, float4 v) {
    sum = fmaf(w.x, v.x, sum), sum = fmaf(w.y, v.y, sum);
    return fmaf(w.w, v.w, fmaf(w.z, v.z, sum));
}

DEVICE uint2 expert_input(const RouteParams& p, int column, float4 n) {
    if (p.input_weight) {
        const float4 w = *(const float4*)(p.input_weight + column);
        n = float4{n.x * w.x, n.y * w.y, n.z * w.z, n.w * w.w};
    }
    return pack_quad(n);
}
DEVICE void store_normed(const RouteParams& p, int token, int column, float4 n) {
    *(uint2*)(p.normed + (i64)token * p.norm.width + column) = expert_input(p, column, n);
}

// A logit is the sum of NORM_PARTITIONS partitions, cut as a norm cuts its row.
//
// This is for up to four tokens, with a block of NORM_PARTITIONS warps for each (expert, token), so that many SMs
// read the router's weights. The products that use the logits choose: `expert_of_rank`. A block that there is beside
// those of experts has the shared expert's share, which is as `shared_expert_gate` makes it. Dynamic shared memory:
// float [2][width].
KERNEL __launch_bounds__(32 * NORM_PARTITIONS, 4) moe_logits(const __grid_constant__ RouteParams p) {
    const int expert = blockIdx.x, token = blockIdx.y, partition = threadIdx.x / 32;
    const bool is_shared = expert == p.num_experts;
    float *own_weights = shared, *norm_weights = shared + p.norm.width;
    const float* weight = is_shared ? p.shared_gate : p.weight + (i64)expert * p.norm.width;
    // Weights are constant: loading them need not wait. Each thread copies what it needs itself.
    for (int column = partition_column(partition); column < p.norm.width; column += PARTITION_STEP) {
        copy_words<16>(shared_address(own_weights + column), weight + column);
        copy_words<16>(shared_address(norm_weights + column), p.norm.weight + column);
    }
    copy_commit();
    const float bias = is_shared ? 0.0f : p.bias[expert];
    wait_for_previous();
    __shared__ float norm_sums[2 * NORM_PARTITIONS], sums[NORM_PARTITIONS];
    NormParams norm = p.norm;
    norm.weight = norm_weights;
    copy_wait<0>();
    float sum = 0.0f;
    normalise_row(norm, p.x + (i64)token * p.norm.width, norm_sums, [&](int column, float4 n) {
        if (is_shared) {
            const uint2 halves = expert_input(p, column, n);
            n = {low_half(halves.x), high_half(halves.x), low_half(halves.y), high_half(halves.y)};
        }
        sum = add_products(sum, *(const float4*)(own_weights + column), n);
        if (expert == 0) store_normed(p, token, column, n);
    });
    if (expert == 0 && threadIdx.x < p.num_used) p.experts[token * p.num_used + threadIdx.x] = -1;
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[partition] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    if (is_shared)
        p.shares[token] = share_of(row_sum(sums));
    else
        p.logits[(i64)token * p.num_experts + expert] = row_sum(sums) + bias;
}

// Calls use(column) for what this lane has of partition `partition` of a row, in order, four columns at a time.
template <int UNROLLED = 1, typename Use>
DEVICE void for_columns(int partition, int width, Use use) {
#pragma unroll UNROLLED
    for (int column = (partition * 32 + threadIdx.x % 32) * 4; column < width; column += PARTITION_STEP) use(column);
}

// This is for more tokens: TOKENS of them and `block_experts` experts a block, whose warps share a row's columns as a
// norm's partitions. Rows lie in shared memory, normed; of the router's weights a lane uses what it loads for all
// TOKENS, and of a row what it loads for EXPERTS experts. Dynamic shared memory: float [TOKENS][width + 2
// NORM_PARTITIONS + NORM_PARTITIONS block_experts].
template <int TOKENS, int EXPERTS>
DEVICE void logits_of_many(const RouteParams& p) {
    const int width = p.norm.width, first = blockIdx.x * TOKENS, num_tokens = min(TOKENS, p.num_tokens - first);
    const int partition = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_expert = blockIdx.y * p.block_experts, num_own = min(p.block_experts, p.num_experts - first_expert);
    float *rows = shared, *norm_sums = rows + TOKENS * width;    // [TOKENS][width], [2][TOKENS][NORM_PARTITIONS]
    float* partials = norm_sums + 2 * TOKENS * NORM_PARTITIONS;  // [TOKENS][block_experts][NORM_PARTITIONS]
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
        put_partitions(norm_sums + TOKENS * NORM_PARTITIONS, NORM_PARTITIONS, sums);
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
    put_partitions(norm_sums, NORM_PARTITIONS, squares);
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TOKENS; t++) factors[t] = norm_factor(p.norm, row_sum(norm_sums + t * NORM_PARTITIONS));
    for_columns(partition, width, [&](int column) {
        const float4 weight = *(const float4*)(p.norm.weight + column);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const float4 n = scale_quad(p.norm, weight, column, sum_of(load(t, column), shifts[t]), factors[t]);
            *(float4*)(rows + t * width + column) = n;  // read by this lane only
            if (t < num_tokens && blockIdx.y == 0) store_normed(p, first + t, column, n);
        }
    });

    for (int own = 0; own < num_own; own += EXPERTS) {
        float sums[EXPERTS][TOKENS] = {};
        for_columns<3>(partition, width, [&](int column) {
            float4 weights[EXPERTS];
#pragma unroll
            for (int i = 0; i < EXPERTS; i++)
                weights[i] =
                    *(const float4*)(p.weight + (i64)(first_expert + min(own + i, num_own - 1)) * width + column);
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const float4 v = *(const float4*)(rows + t * width + column);
#pragma unroll
                for (int i = 0; i < EXPERTS; i++) sums[i][t] = add_products(sums[i][t], weights[i], v);
            }
        });
#pragma unroll
        for (int i = 0; i < EXPERTS; i++)
            if (own + i < num_own)
                put_partitions(partials + (own + i) * NORM_PARTITIONS, p.block_experts * NORM_PARTITIONS, sums[i]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < num_tokens * num_own; i += blockDim.x) {
        const int t = i / num_own, own = i - t * num_own, expert = first_expert + own;
        p.logits[(i64)(first + t) * p.num_experts + expert] =
            row_sum(partials + (t * p.block_experts + own) * NORM_PARTITIONS) + p.bias[expert];
    }
}

KERNEL __launch_bounds__(32 * NORM_PARTITIONS, 2) moe_logits_many(const __grid_constant__ RouteParams p) {
    logits_of_many<MANY_TOKENS, 4>(p);
}

// This is for rows of which shared memory does not hold as many.
KERNEL __launch_bounds__(32 * NORM_PARTITIONS, 2) moe_logits_pairs(const __grid_constant__ RouteParams p) {
    logits_of_many<2, 8>(p);
}

// After moe_logits_many: a warp has a token.
KERNEL __launch_bounds__(256) moe_choose(const __grid_constant__ RouteParams p) {
    wait_for_previous();
    const int token = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= p.num_tokens) return;
    const float* logits = p.logits + (i64)token * p.num_experts;
    Ranking ranking(logits, p.num_experts);
    int expert = 0;
    for (int rank = 0; rank < p.num_used; rank++) {
        const int found = ranking.next();
        if (lane == rank) expert = found;
    }
    const float weight = routing_weight(logits[expert], p.num_used);
    if (lane >= p.num_used) return;
    p.experts[(i64)token * p.num_used + lane] = expert;
    p.routing_weights[(i64)token * p.num_used + lane] = weight;
}

// Tiles of up to `tile_pairs` pairs of one expert each.
struct TilesParams {
    int4* tiles;     // [max_tiles] (expert, first pair, number of pairs, -)
    int* num_tiles;  // [1]
    int tile_pairs;  // a multiple of 16
};

struct PlanParams {
    const int* experts;         // [num_pairs] of each (token, rank)
    int* rows;                  // [num_pairs] token of each pair, pairs sorted by expert
    int* places;                // [num_pairs] where each pair went
    TilesParams gate_up, down;  // in which they are multiplied
    int num_pairs, num_experts, num_used;
};

// The sum of `value` over the lanes up to this one.
DEVICE int sum_up_to_lane(int value) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(ALL_LANES, value, distance);
        if (threadIdx.x % 32 >= distance) value += before;
    }
    return value;
}

// Of each expert the sum of ceil(count / size) of those before it, and last that of all. A warp calls it.
DEVICE void sum_before(int* to, const int* counts, int num_experts, int size) {
    int before = 0;
    for (int first = 0; first <= num_experts; first += 32) {
        const int expert = first + threadIdx.x % 32;
        const int own = expert < num_experts ? (counts[expert] + size - 1) / size : 0,
                  end = before + sum_up_to_lane(own);
        if (expert <= num_experts) to[expert] = end - own;
        before = __shfl_sync(ALL_LANES, end, 31);
    }
}

// An expert's tiles have about the same number of pairs. All threads of the block call it.
DEVICE void write_tiles(const TilesParams& p, const int* starts, const int* first_tile, int num_experts) {
    if (threadIdx.x == 0) *p.num_tiles = first_tile[num_experts];
    for (int expert = threadIdx.x / 32; expert < num_experts; expert += blockDim.x / 32) {
        const int start = starts[expert], end = starts[expert + 1];
        const int tile = first_tile[expert], num_tiles = first_tile[expert + 1] - tile;
        for (int i = threadIdx.x % 32; i < num_tiles; i += 32) {
            const int pairs = ((end - start + num_tiles - 1) / num_tiles + 15) / 16 * 16, first = start + i * pairs;
            p.tiles[tile + i] = make_int4(expert, first, min(pairs, end - first), 0);
        }
    }
}

// Runs as one block. Which of an expert's pairs comes first may differ each time: that changes the place of a pair's
// row, and no bit of it. Dynamic shared memory: int [5 * (num_experts + 1)].
KERNEL __launch_bounds__(1024) moe_plan(const __grid_constant__ PlanParams p) {
    wait_for_previous();
    extern __shared__ int counts[];  // [num_experts + 1], as are those that follow
    int *next = counts + p.num_experts + 1, *starts = next + p.num_experts + 1;  // where an expert's next pair goes
    int *gate_up_tiles = starts + p.num_experts + 1, *down_tiles = gate_up_tiles + p.num_experts + 1;
    for (int expert = threadIdx.x; expert < p.num_experts; expert += blockDim.x) counts[expert] = 0;
    __syncthreads();
    for (int pair = threadIdx.x; pair < p.num_pairs; pair += blockDim.x) atomicAdd(counts + p.experts[pair], 1);
    __syncthreads();
    const int warp = threadIdx.x / 32;
    if (warp == 0) sum_before(starts, counts, p.num_experts, 1);
    if (warp == 1) sum_before(next, counts, p.num_experts, 1);
    if (warp == 2) sum_before(gate_up_tiles, counts, p.num_experts, p.gate_up.tile_pairs);
    if (warp == 3) sum_before(down_tiles, counts, p.num_experts, p.down.tile_pairs);
    __syncthreads();
    for (int pair = threadIdx.x; pair < p.num_pairs; pair += blockDim.x) {
        const int place = atomicAdd(next + p.experts[pair], 1);
        p.rows[place] = pair / p.num_used;
        p.places[pair] = place;
    }
    write_tiles(p.gate_up, starts, gate_up_tiles, p.num_experts);
    write_tiles(p.down, starts, down_tiles, p.num_experts);
}

struct GatherParams {
    const u16* normed;  // [num_tokens, width]
    const int* rows;    // [num_pairs] token of each pair, pairs sorted by expert
    u16* out;           // [num_pairs, width]
    int width;          // a multiple of 8
};

// Each block copies the row of one pair, some vectors of a thread at a time.
KERNEL __launch_bounds__(128) moe_gather(const __grid_constant__ GatherParams p) {
    constexpr int AT_ONCE = 4;
    wait_for_previous();
    const uint4* from = (const uint4*)(p.normed + (i64)p.rows[blockIdx.x] * p.width);
    uint4* to = (uint4*)(p.out + (i64)blockIdx.x * p.width);
    const int num_vectors = p.width / 8;
    for (int first = threadIdx.x; first < num_vectors; first += 128 * AT_ONCE) {
        uint4 vectors[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (first + 128 * i < num_vectors) vectors[i] = from[first + 128 * i];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (first + 128 * i < num_vectors) to[first + 128 * i] = vectors[i];
    }
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
