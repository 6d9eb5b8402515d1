// Mixture of experts around the products, after the router: the list of tiles, the weighted sum.
#include "experts.cuh"

extern __shared__ __align__(16) float shared[];

// Tiles of up to `tile_pairs` pairs of one expert each.
struct TilesParams {
    int4* tiles;     // [max_tiles] (expert, first pair, number of pairs, -)
    int* num_tiles;  // [1]
    int tile_pairs;  // a multiple of 16
};

struct PlanParams {
    const int* experts;         // [num_pairs] of each (token, rank)
    int* counts;                // [blocks, num_experts] of each block's pairs
    int* places;                // [num_pairs] where each pair went, pairs sorted by expert
    TilesParams gate_up, down;  // in which they are multiplied; the latter null: in the same
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

// Of each expert the sum of the counts of those before it, and last that of all. A warp calls it, whose lanes have as
// many experts each.
DEVICE void sum_before(int* to, const int* counts, int num_experts) {
    const int each = (num_experts + 32) / 32, first = threadIdx.x % 32 * each, end = min(first + each, num_experts);
    int own = 0;
    for (int expert = first; expert < end; expert++) own += counts[expert];
    int before = sum_up_to_lane(own) - own;
    for (int expert = first; expert <= end && expert < first + each; expert++) {
        to[expert] = before;
        if (expert < end) before += counts[expert];
    }
}

// Calls use(expert, its tiles, pairs of each / 16) for the experts of this thread that have some. Their pairs begin at
// `starts`; an expert's tiles have about the same number of them.
template <typename Use>
DEVICE void for_experts(int tile_pairs, const int* starts, int num_experts, Use use) {
    for (int expert = threadIdx.x; expert < num_experts; expert += blockDim.x) {
        const int count = starts[expert + 1] - starts[expert], num_tiles = (count + tile_pairs - 1) / tile_pairs;
        if (num_tiles) use(expert, num_tiles, (count + 16 * num_tiles - 1) / (16 * num_tiles));
    }
}

// The largest tiles come first, so that blocks that take them in turn have about the same work. All threads of the
// block call it.
DEVICE void write_tiles(const TilesParams& p, const int* starts, int num_experts) {
    constexpr int SIZES = MOST_TILE_PAIRS / 16;
    __shared__ int places[SIZES + 1];  // of the next tile of 16 (SIZES - i) pairs
    __syncthreads();
    if (threadIdx.x <= SIZES) places[threadIdx.x] = 0;
    __syncthreads();
    for_experts(p.tile_pairs, starts, num_experts,
                [&](int, int num_tiles, int size) { atomicAdd(places + SIZES - size, num_tiles); });
    __syncthreads();
    if (threadIdx.x < 32) {
        const int own = threadIdx.x < SIZES ? places[threadIdx.x] : 0, before = sum_up_to_lane(own) - own;
        if (threadIdx.x <= SIZES) places[threadIdx.x] = before;
        if (threadIdx.x == SIZES) *p.num_tiles = before;
    }
    __syncthreads();
    for_experts(p.tile_pairs, starts, num_experts, [&](int expert, int num_tiles, int size) {
        const int place = atomicAdd(places + SIZES - size, num_tiles), pairs = 16 * size;
        for (int i = 0; i < num_tiles; i++) {
            const int start = starts[expert] + i * pairs;
            p.tiles[place + i] = make_int4(expert, start, min(pairs, starts[expert + 1] - start), 0);
        }
    });
}

// Calls use(i, pair, expert) for the pairs of this thread.
template <typename Use>
DEVICE void for_pairs(const PlanParams& p, Use use) {
#pragma unroll
    for (int i = 0; i < PLAN_PAIRS / PLAN_THREADS; i++) {
        const int pair = blockIdx.x * PLAN_PAIRS + i * PLAN_THREADS + threadIdx.x;
        if (pair < p.num_pairs) use(i, pair, p.experts[pair]);
    }
}

// Before moe_plan: how often each expert is among a block's pairs. Dynamic shared memory: int [num_experts].
KERNEL __launch_bounds__(PLAN_THREADS) moe_count(const __grid_constant__ PlanParams p) {
    wait_for_previous();
    extern __shared__ int counts[];
    for (int expert = threadIdx.x; expert < p.num_experts; expert += PLAN_THREADS) counts[expert] = 0;
    __syncthreads();
    for_pairs(p, [&](int, int, int expert) { atomicAdd(counts + expert, 1); });
    __syncthreads();
    for (int expert = threadIdx.x; expert < p.num_experts; expert += PLAN_THREADS)
        p.counts[blockIdx.x * p.num_experts + expert] = counts[expert];
}

// A block has PLAN_PAIRS pairs; the first one writes the tiles. Which of an expert's pairs comes first may differ each
// time: that changes the place of a pair's row, and no bit of it. Dynamic shared memory: int [3 * (num_experts + 1)].
KERNEL __launch_bounds__(PLAN_THREADS) moe_plan(const __grid_constant__ PlanParams p) {
    wait_for_previous();
    extern __shared__ int counts[];  // [num_experts + 1], as are those that follow
    int *before = counts + p.num_experts + 1, *starts = before + p.num_experts + 1;  // pairs of the blocks before
    for (int expert = threadIdx.x; expert < p.num_experts; expert += PLAN_THREADS) counts[expert] = before[expert] = 0;
    __syncthreads();
    int ranks[PLAN_PAIRS / PLAN_THREADS];
    for_pairs(p, [&](int i, int, int expert) { ranks[i] = atomicAdd(counts + expert, 1); });
    __syncthreads();
    for (int expert = threadIdx.x; expert < p.num_experts; expert += PLAN_THREADS) {
        int all = 0, of_those_before = 0;
#pragma unroll 8
        for (int block = 0; block < gridDim.x; block++) {
            const int count = p.counts[block * p.num_experts + expert];
            all += count;
            if (block < blockIdx.x) of_those_before += count;
        }
        counts[expert] = all, before[expert] = of_those_before;
    }
    __syncthreads();
    if (threadIdx.x < 32) sum_before(starts, counts, p.num_experts);
    __syncthreads();
    for_pairs(p, [&](int i, int pair, int expert) { p.places[pair] = starts[expert] + before[expert] + ranks[i]; });
    if (blockIdx.x > 0) return;
    write_tiles(p.gate_up, starts, p.num_experts);
    if (p.down.tiles) write_tiles(p.down, starts, p.num_experts);
}

struct GatherParams {
    const u16* normed;  // [num_tokens, width]
    const int* places;  // [num_tokens, num_used] where each pair went, pairs sorted by expert
    u16* out;           // [num_pairs, width]
    int width;          // a multiple of 8
    int num_used;
};

// Each block copies the row of one token to the places of its pairs, some vectors of a thread at a time.
KERNEL __launch_bounds__(128) moe_gather(const __grid_constant__ GatherParams p) {
    constexpr int AT_ONCE = 4, PLACES = 4;
    wait_for_previous();
    const uint4* from = (const uint4*)(p.normed + (i64)blockIdx.x * p.width);
    const int* places = p.places + (i64)blockIdx.x * p.num_used;
    const int num_vectors = p.width / 8;
    for (int first = threadIdx.x; first < num_vectors; first += 128 * AT_ONCE) {
        uint4 vectors[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (first + 128 * i < num_vectors) vectors[i] = from[first + 128 * i];
        for (int rank = 0; rank < p.num_used; rank += PLACES) {
            int at[PLACES];
#pragma unroll
            for (int j = 0; j < PLACES; j++) at[j] = places[min(rank + j, p.num_used - 1)];
#pragma unroll
            for (int j = 0; j < PLACES; j++) {
                if (rank + j >= p.num_used) break;
                uint4* to = (uint4*)(p.out + (i64)at[j] * p.width) + first;
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++)
                    if (first + 128 * i < num_vectors) to[128 * i] = vectors[i];
            }
        }
    }
}

struct SortParams {
    PlanParams plan;      // `counts` null
    GatherParams gather;  // `places` null
};

// The plan and the rows of up to some thousand pairs: a warp has a pair, whose place is the number of those that come
// before it, by expert and then by their own number. The first block writes the tiles. Dynamic shared memory: u32
// [pairs, a multiple of 4], int [2 * (num_experts + 1)].
KERNEL __launch_bounds__(SORT_THREADS, 2) moe_sort(const __grid_constant__ SortParams p) {
    constexpr int AT_ONCE = 8;
    extern __shared__ __align__(16) u32 keys[];
    const int num_pairs = p.plan.num_pairs, num_keys = (num_pairs + 3) / 4 * 4, num_experts = p.plan.num_experts;
    const int pair = ((int)blockIdx.x - 1) * (SORT_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool has_pair = pair >= 0 && pair < num_pairs;
    const int num_vectors = has_pair ? p.gather.width / 8 : 0;
    wait_for_previous();
    const uint4* from = (const uint4*)(p.gather.normed + (i64)(pair / p.plan.num_used) * p.gather.width);
    uint4 vectors[AT_ONCE];
    auto load = [&](int first) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (first + 32 * i < num_vectors) vectors[i] = from[first + 32 * i];
    };
    load(lane);
    for (int i = threadIdx.x; i < num_keys; i += SORT_THREADS)
        keys[i] = i < num_pairs ? (u32)p.plan.experts[i] << 16 | i : 0xFFFFFFFFu;
    int *counts = (int*)(keys + num_keys), *starts = counts + num_experts + 1;
    if (blockIdx.x == 0)
        for (int expert = threadIdx.x; expert < num_experts; expert += SORT_THREADS) counts[expert] = 0;
    __syncthreads();
    if (blockIdx.x == 0) {
        for (int i = threadIdx.x; i < num_pairs; i += SORT_THREADS) atomicAdd(counts + (keys[i] >> 16), 1);
        __syncthreads();
        if (threadIdx.x < 32) sum_before(starts, counts, num_experts);
        write_tiles(p.plan.gate_up, starts, num_experts);
        if (p.plan.down.tiles) write_tiles(p.plan.down, starts, num_experts);
        return;
    }
    if (!has_pair) return;
    const u32 own = keys[pair];
    int place = 0;
#pragma unroll 4
    for (int i = 4 * lane; i < num_keys; i += 128) {
        const uint4 others = *(const uint4*)(keys + i);
        place += (others.x < own) + (others.y < own) + (others.z < own) + (others.w < own);
    }
    place = __reduce_add_sync(ALL_LANES, place);
    if (lane == 0) p.plan.places[pair] = place;
    uint4* to = (uint4*)(p.gather.out + (i64)place * p.gather.width);
    for (int first = lane;;) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (first + 32 * i < num_vectors) to[first + 32 * i] = vectors[i];
        if ((first += 32 * AT_ONCE) >= num_vectors) break;
        load(first);
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

// USED: experts of a token, if the compiler is to know; else 0.
template <int USED>
DEVICE void combine(const CombineParams& p) {
    constexpr int AHEAD = USED ? USED : 8;  // experts whose results are fetched before the first is used
    const int num_used = USED ? USED : p.num_used;
    const int quads = p.width / 4, token = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    const bool inside = i < quads;
    // Of few tokens: blocks of the next kernel take the places of the experts' as soon as these end.
    if (!p.routing_weights) start_next();
    // All but the results was there before the previous kernel began.
    acquire();
    float4* to = (float4*)(p.out + (i64)token * p.width) + i;
    float4 sum = inside && p.adds ? *to : float4{}, ahead[AHEAD];
    const float* routing_weights = p.routing_weights + token * num_used;
    if (!p.routing_weights) {
        if (threadIdx.x < 32) {
            const bool is_used = threadIdx.x < num_used;
            const int expert = is_used ? p.experts[token * num_used + threadIdx.x] : 0;
            const float weight = routing_weight(p.logits[(i64)token * p.num_experts + expert], num_used);
            if (is_used) shared[threadIdx.x] = weight;
        }
        __syncthreads();
        routing_weights = shared;
    }
    auto weight_of = [&](int rank) {
        const float weight = routing_weights[rank];
        return p.output_scales ? weight * p.output_scales[p.experts[token * num_used + rank]] : weight;
    };
    auto row_of = [&](int rank) {
        const int pair = token * num_used + rank;
        return p.places ? p.places[pair] : pair;
    };
    auto result = [&](int row) { return ((const float4*)(p.results + (i64)row * p.width))[i]; };
    auto add = [&](float weight, float4 v) {
        sum.x = fmaf(weight, v.x, sum.x), sum.y = fmaf(weight, v.y, sum.y);
        sum.z = fmaf(weight, v.z, sum.z), sum.w = fmaf(weight, v.w, sum.w);
    };
    float weights[AHEAD];
    int rows[AHEAD];
#pragma unroll
    for (int rank = 0; rank < AHEAD; rank++)
        if (rank < num_used) weights[rank] = weight_of(rank), rows[rank] = row_of(rank);
    wait_for_previous();
    if (!inside) return;
#pragma unroll
    for (int rank = 0; rank < AHEAD; rank++)
        if (rank < num_used) ahead[rank] = result(rows[rank]);
#pragma unroll
    for (int rank = 0; rank < AHEAD; rank++)
        if (rank < num_used) add(weights[rank], ahead[rank]);
    for (int rank = AHEAD; rank < num_used; rank++) add(weight_of(rank), result(row_of(rank)));
    *to = sum;
}

// Dynamic shared memory: float [num_used]. A kernel for each number of experts of a token that is usual: the fewer
// results are fetched ahead, the more blocks fit an SM.
KERNEL __launch_bounds__(256) moe_combine(const __grid_constant__ CombineParams p) { combine<0>(p); }
KERNEL __launch_bounds__(256, 8) moe_combine_4(const __grid_constant__ CombineParams p) { combine<4>(p); }
KERNEL __launch_bounds__(256, 4) moe_combine_8(const __grid_constant__ CombineParams p) { combine<8>(p); }
