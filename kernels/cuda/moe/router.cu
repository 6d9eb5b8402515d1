// Mixture of experts before the products: norm, router, and the choice of experts.
#include "experts.cuh"
#include "../norm/norm.cuh"

extern __shared__ __align__(16) float shared[];

struct ChoiceParams {
    int* experts;            // [num_tokens, num_used] by rank; moe_logits: -1
    float* routing_weights;  // [num_tokens, num_used] softmax over the chosen
    u32* arrivals;           // [blocks of tokens] moe_logits_most*: counters, 0 before and after
};

struct RouteParams {
    const float* x;             // [num_tokens, width] residual stream
    const float* weight;        // [num_experts, width] router
    const float* bias;          // [num_experts]
    const float* input_weight;  // [width], or null: by what `normed` differs from what the router is given
    const float* shared_gate;   // [width] moe_logits: of the expert that all tokens go through
    float* shares;              // [num_tokens] moe_logits: what it is multiplied by
    u16* normed;                // [num_tokens, width]
    float* logits;              // [num_tokens, num_experts]
    NormParams norm;
    ChoiceParams choice;
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
    start_next();
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
    if (expert == 0 && threadIdx.x < p.num_used) p.choice.experts[token * p.num_used + threadIdx.x] = -1;
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

// Puts a warp's partitions of COUNT rows to to[row * stride + partition].
template <int COUNT>
DEVICE void put_partitions(float* to, int stride, int partition, float (&sums)[COUNT]) {
    const float sum = warp_sums(sums);
    const int lane = threadIdx.x % 32;
    if (lane % (32 / COUNT) == 0) to[lane / (32 / COUNT) * stride + partition] = sum;
}

// Adds up the partitions of logits of a block's rows for `in_slab` experts from `first_expert` on, and stores them. All
// threads of the block call it; afterwards `partials` [rows][SLAB_EXPERTS][NORM_PARTITIONS] are free.
DEVICE void store_logits(const RouteParams& p, const float* partials, int first, int num_tokens, int first_expert,
                         int in_slab) {
    __syncthreads();
    for (int i = threadIdx.x; i < num_tokens * in_slab; i += blockDim.x) {
        const int t = i / in_slab, own = i - t * in_slab, expert = first_expert + own;
        p.logits[(i64)(first + t) * p.num_experts + expert] =
            row_sum(partials + (t * SLAB_EXPERTS + own) * NORM_PARTITIONS) + p.bias[expert];
    }
    __syncthreads();
}

// A lane's columns of the router's weights for `expert` and the next one; where there is none, for the last one.
template <int QUADS>
DEVICE void load_weights(float4 (&weights)[2][QUADS], const RouteParams& p, int expert, int first_column) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            const int column = first_column + q * PARTITION_STEP;
            const float* row = p.weight + (i64)min(expert + i, p.num_experts - 1) * p.norm.width;
            weights[i][q] = column < p.norm.width ? *(const float4*)(row + column) : float4{0.0f, 0.0f, 0.0f, 0.0f};
        }
}

// This is for more tokens: TOKENS of them and `block_experts` experts a block, whose warps share a row's columns as a
// norm's partitions. Rows lie in shared memory, normed; of the router's weights a lane uses what it loads for all
// TOKENS, and of a row what it loads for EXPERTS experts. Dynamic shared memory: float [TOKENS][width + 2
// NORM_PARTITIONS + NORM_PARTITIONS SLAB_EXPERTS].
template <int TOKENS, int EXPERTS>
DEVICE void logits_of_many(const RouteParams& p) {
    const int width = p.norm.width, first = blockIdx.x * TOKENS, num_tokens = min(TOKENS, p.num_tokens - first);
    const int partition = threadIdx.x / 32;
    const int first_expert = blockIdx.y * p.block_experts, num_own = min(p.block_experts, p.num_experts - first_expert);
    float *rows = shared, *norm_sums = rows + TOKENS * width;    // [TOKENS][width], [2][TOKENS][NORM_PARTITIONS]
    float* partials = norm_sums + 2 * TOKENS * NORM_PARTITIONS;  // [TOKENS][SLAB_EXPERTS][NORM_PARTITIONS]
    auto load = [&](int token, int column) {  // where there are fewer tokens, the last one is done again
        return *(const float4*)(p.x + (i64)(first + min(token, num_tokens - 1)) * width + column);
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
        put_partitions(norm_sums + TOKENS * NORM_PARTITIONS, NORM_PARTITIONS, partition, sums);
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
    put_partitions(norm_sums, NORM_PARTITIONS, partition, squares);
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

#pragma unroll 1
    for (int slab = 0; slab < num_own; slab += SLAB_EXPERTS) {
        const int in_slab = min(SLAB_EXPERTS, num_own - slab);
#pragma unroll 1
        for (int own = 0; own < in_slab; own += EXPERTS) {
            float sums[EXPERTS][TOKENS] = {};
            for_columns<3>(partition, width, [&](int column) {
                float4 weights[EXPERTS];
#pragma unroll
                for (int i = 0; i < EXPERTS; i++) {
                    const int expert = first_expert + slab + min(own + i, in_slab - 1);
                    weights[i] = *(const float4*)(p.weight + (i64)expert * width + column);
                }
#pragma unroll
                for (int t = 0; t < TOKENS; t++) {
                    const float4 v = *(const float4*)(rows + t * width + column);
#pragma unroll
                    for (int i = 0; i < EXPERTS; i++) sums[i][t] = add_products(sums[i][t], weights[i], v);
                }
            });
#pragma unroll
            for (int i = 0; i < EXPERTS; i++)
                if (own + i < in_slab)
                    put_partitions(partials + (own + i) * NORM_PARTITIONS, SLAB_EXPERTS * NORM_PARTITIONS, partition,
                                   sums[i]);
        }
        store_logits(p, partials, first, num_tokens, first_expert + slab, in_slab);
    }
}

KERNEL __launch_bounds__(32 * NORM_PARTITIONS, 2) moe_logits_many(const __grid_constant__ RouteParams p) {
    logits_of_many<MANY_TOKENS, 4>(p);
}

// This is for rows of which shared memory does not hold as many.
KERNEL __launch_bounds__(32 * NORM_PARTITIONS, 2) moe_logits_pairs(const __grid_constant__ RouteParams p) {
    logits_of_many<2, 8>(p);
}

// A warp chooses the experts of `token`.
DEVICE void choose(const RouteParams& p, int token) {
    const int lane = threadIdx.x % 32;
    const float* logits = p.logits + (i64)token * p.num_experts;
    const int expert = expert_of_lane(logits, p.num_experts, p.num_used);
    const float weight = routing_weight(logits[expert], p.num_used);
    if (lane >= p.num_used) return;
    p.choice.experts[(i64)token * p.num_used + lane] = expert;
    p.choice.routing_weights[(i64)token * p.num_used + lane] = weight;
}

// Whether this block is the last of `count` to arrive at the counter, which is 0 again then: what those before it have
// written is there. All threads of the block call it, after a barrier.
DEVICE bool arrives_last(u32* counter, u32 count) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        // It acquires and releases for the whole block, by the barriers around it.
        u32 arrived;
        asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                     : "=r"(arrived)
                     : "l"(counter), "r"(count - 1)
                     : "memory");
        last = arrived == count - 1;
    }
    __syncthreads();
    return last;
}

// This is for dozens of tokens and more, and rows of up to QUADS * PARTITION_STEP columns: a lane holds what it has of
// TOKENS rows, normed, while it goes through `block_experts` experts, two at a time. A block has two groups of
// NORM_PARTITIONS warps, with as many rows each, so that the second one finds the weights in the L1 cache. Dynamic
// shared memory: float [2 TOKENS][2 NORM_PARTITIONS + NORM_PARTITIONS SLAB_EXPERTS].
constexpr int GROUPS = 2;
template <int TOKENS, int QUADS>
DEVICE void logits_of_most(const RouteParams& p) {
    constexpr int ROWS = GROUPS * TOKENS;
    const int width = p.norm.width, first = blockIdx.x * ROWS, num_tokens = min(ROWS, p.num_tokens - first);
    const int group = threadIdx.x / (32 * NORM_PARTITIONS), partition = threadIdx.x / 32 % NORM_PARTITIONS;
    const int first_row = group * TOKENS, first_column = partition_column(partition);
    float *norm_sums = shared + first_row * NORM_PARTITIONS, *means = norm_sums + ROWS * NORM_PARTITIONS;
    float* partials = shared + 2 * ROWS * NORM_PARTITIONS;  // [ROWS][SLAB_EXPERTS][NORM_PARTITIONS]
    const int first_expert = blockIdx.y * p.block_experts, num_own = min(p.block_experts, p.num_experts - first_expert);
    float4 next[2][QUADS];
    load_weights(next, p, first_expert, first_column);  // constant
    wait_for_previous();
    float4 rows[TOKENS][QUADS];
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            const int column = first_column + q * PARTITION_STEP;
            const float* row = p.x + (i64)(first + min(first_row + t, num_tokens - 1)) * width;
            rows[t][q] = column < width ? *(const float4*)(row + column) : float4{0.0f, 0.0f, 0.0f, 0.0f};
        }
    float shifts[TOKENS] = {};
    if (p.norm.bias) {
        float sums[TOKENS] = {};
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
#pragma unroll
            for (int q = 0; q < QUADS; q++) {
                const float4 v = rows[t][q];
                sums[t] += (v.x + v.y) + (v.z + v.w);
            }
        put_partitions(means, NORM_PARTITIONS, partition, sums);
        __syncthreads();
#pragma unroll
        for (int t = 0; t < TOKENS; t++) shifts[t] = minus_mean(p.norm, row_sum(means + t * NORM_PARTITIONS));
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
#pragma unroll
        for (int q = 0; q < QUADS; q++)
            if (first_column + q * PARTITION_STEP < width) rows[t][q] = sum_of(rows[t][q], shifts[t]);
    float squares[TOKENS] = {};
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
#pragma unroll
        for (int q = 0; q < QUADS; q++) squares[t] = add_squares(squares[t], rows[t][q]);
    put_partitions(norm_sums, NORM_PARTITIONS, partition, squares);
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        const float factor = norm_factor(p.norm, row_sum(norm_sums + t * NORM_PARTITIONS));
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            const int column = first_column + q * PARTITION_STEP;
            if (column >= width) continue;
            const float4 weight = *(const float4*)(p.norm.weight + column);
            rows[t][q] = scale_quad(p.norm, weight, column, rows[t][q], factor);
            if (first_row + t < num_tokens && blockIdx.y == 0)
                store_normed(p, first + first_row + t, column, rows[t][q]);
        }
    }

#pragma unroll 1
    for (int slab = 0; slab < num_own; slab += SLAB_EXPERTS) {
        const int in_slab = min(SLAB_EXPERTS, num_own - slab);
#pragma unroll 1
        for (int own = 0; own < in_slab; own += 2) {
            float4 weights[2][QUADS];
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int q = 0; q < QUADS; q++) weights[i][q] = next[i][q];
            load_weights(next, p, first_expert + slab + own + 2, first_column);
            float sums[2 * TOKENS] = {};
#pragma unroll
            for (int q = 0; q < QUADS; q++)
#pragma unroll
                for (int t = 0; t < TOKENS; t++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        sums[i * TOKENS + t] = add_products(sums[i * TOKENS + t], weights[i][q], rows[t][q]);
            const float sum = warp_sums(sums);
            constexpr int LANES = 32 / (2 * TOKENS);  // that have the same sum
            const int index = threadIdx.x % 32 / LANES, expert = own + index / TOKENS;
            if (threadIdx.x % LANES == 0 && expert < in_slab)
                partials[((first_row + index % TOKENS) * SLAB_EXPERTS + expert) * NORM_PARTITIONS + partition] = sum;
        }
        store_logits(p, partials, first, num_tokens, first_expert + slab, in_slab);
    }
    // The last block of those that have tokens in common chooses the experts of these.
    if (gridDim.y > 1 && !arrives_last(p.choice.arrivals + blockIdx.x, gridDim.y)) return;
    for (int token = threadIdx.x / 32; token < num_tokens; token += blockDim.x / 32) choose(p, first + token);
}

KERNEL __launch_bounds__(32 * NORM_PARTITIONS * GROUPS, 1) moe_logits_most(const __grid_constant__ RouteParams p) {
    logits_of_most<MANY_TOKENS, 2>(p);
}

// This is for longer rows.
KERNEL __launch_bounds__(32 * NORM_PARTITIONS * GROUPS, 1) moe_logits_most_wide(const __grid_constant__ RouteParams p) {
    logits_of_most<MANY_TOKENS / 2, 3>(p);
}

// After moe_logits_many and moe_logits_pairs: a warp has a token.
KERNEL __launch_bounds__(256) moe_choose(const __grid_constant__ RouteParams p) {
    wait_for_previous();
    const int token = blockIdx.x * 8 + threadIdx.x / 32;
    if (token < p.num_tokens) choose(p, token);
}
