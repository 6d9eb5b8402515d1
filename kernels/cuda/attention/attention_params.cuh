// What the attention kernels are given, and what they share whatever the length of a head: how partial results merge,
// what a row sees, and how blocks that divide an item's keys meet.
#pragma once
#include "../rope/rope_params.cuh"
#include "attention_plan.cuh"

constexpr int KEY_GROUP = 16;  // consecutive keys of a group lie in one cache block
constexpr int TILE_GROUPS = TILE_KEYS / KEY_GROUP;
constexpr u32 HALF2_ONES = 0x3C003C00u;

// What attention_prefix.cu has to do; null pointers: nothing.
struct PrefixWork {
    const PrefixItem* items;  // [counts]
    const i32* members;       // [num_sequences]
    const i32* query_starts;  // [num_sequences + 1]
};

// What a launch has to do, and where items of the same rows leave their partial results.
struct AttentionWork {
    PlanCounts* counts;      // [1]
    const Item* items;       // [counts]
    i32* arrivals;           // [decode items, num_kv_heads], 0 before and after
    float* partial_outputs;  // [partial_rows, num_kv_heads, HEAD_DIM]
    float2* partial_sums;    // [partial_rows, num_kv_heads]: (m, l)
    PrefixWork prefix;
    i32 has_both;  // attention_decode follows the kernel of prefill work, and overlaps it
};

// With KV_Q8 products come multiplied by CODE_FACTOR. With SOFTCAP a product s of a query and a key, not yet scaled,
// becomes softcap * tanh(s * inverse_softcap).
struct ScoreParams {
    float scale_log2;  // scale * log2(e): softmax in powers of 2
    float softcap, inverse_softcap;
};

struct AttentionParams {
    const u16* qkv;  // [num_tokens, qkv_width], rotated queries first
    LayerCacheParams cache;
    const i32* block_tables;  // [num_sequences, max_blocks]
    const i32* positions;     // [num_tokens], -1: padding
    AttentionWork work;
    const float* sinks;  // [num_heads] or null
    u16* out;            // [num_tokens, num_heads * HEAD_DIM]
    i32 num_tokens, num_kv_heads, group, qkv_width, block_tokens, max_blocks, window;
    ScoreParams scores;
};

DEVICE float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// tanh(x) = 1 - 2 / (1 + e^2x), within 2e-7.
DEVICE float soft_capped(const AttentionParams& p, float score) {
    const float power = power_of_2(__fmul_rn(score, 2.8853900817779268f * p.scores.inverse_softcap));
    return __fmul_rn(p.scores.softcap, __fsub_rn(1.0f, __fdividef(2.0f, __fadd_rn(1.0f, power))));
}

// ---- merging. A partial result over some keys: m = max of the scaled scores (-inf: no key seen), l = sum of
// 2^(score - m), o = sum of 2^(score - m) * value. Merging nothing seen changes no bit.

// Returns the largest score of both sides, and gives how each side's l and o must be weighted.
DEVICE float merge_weights(float m, float other_m, float& keep, float& add) {
    const float larger = fmaxf(m, other_m);
    const float reference = larger == NEGATIVE_INFINITY ? 0.0f : larger;
    keep = power_of_2(__fsub_rn(m, reference));
    add = power_of_2(__fsub_rn(other_m, reference));
    return larger;
}
DEVICE float merged(float x, float keep, float other, float add) { return __fmaf_rn(other, add, __fmul_rn(x, keep)); }

// With codes o is smaller by CODE_FACTOR, and weights, and with them l and o, larger by 2^WEIGHT_EXPONENT: times a
// value's scale they stay above what float16 rounds roughly, and with the largest scale, 516, within its range.
constexpr float WEIGHT_EXPONENT = IS_Q8 ? 6.0f : 0.0f, WEIGHT_FACTOR = IS_Q8 ? 64.0f : 1.0f;

// What o is to be multiplied with in the end. A head's sink is a logit without a value, and comes last.
DEVICE float load_sink(const AttentionParams& p, i32 head) { return p.sinks ? p.sinks[head] : 0.0f; }

DEVICE float final_factor(const AttentionParams& p, float m, float l, float sink) {
    float keep = 1.0f, add = 0.0f;
    if (p.sinks) {
        merge_weights(m, __fmul_rn(sink, 1.4426950408889634f), keep, add);
        l = merged(l, keep, WEIGHT_FACTOR, add);
    }
    return __fdiv_rn(IS_Q8 ? keep / CODE_FACTOR : keep, l);
}
// The same of a head without one.
DEVICE float final_factor(float l) { return __fdiv_rn(IS_Q8 ? 1.0f / CODE_FACTOR : 1.0f, l); }

// ---- rows and keys

DEVICE i32 lowest_key(const AttentionParams& p, i32 position) {
    return p.window && position >= p.window ? position - p.window + 1 : 0;
}

// Where row `row` of an item is: its token and query head.
DEVICE void locate(const AttentionParams& p, const Item& item, i32 kv_head, i32 row, i32& token, i32& head) {
    const i32 pair = item.first_row + row;
    token = pair / p.group;
    head = kv_head * p.group + pair - token * p.group;
}

// Rows before the keys of group `group` of a tile, for one KV head; anything where the sequence has no such keys.
DEVICE i64 group_offset(const AttentionParams& p, const Item& item, i32 kv_head, i32 tile, i32 group) {
    const i32 key = tile * TILE_KEYS + group * KEY_GROUP;
    if (key >= item.num_keys) return 0;
    const i32 index = key / p.block_tokens;
    const i64 block = p.block_tables[(i64)item.sequence * p.max_blocks + index];
    return (block * p.num_kv_heads + kv_head) * p.block_tokens + key - index * p.block_tokens;
}

// ---- tiles of keys or values in shared memory: rows, and with codes their scales behind them

constexpr int SCALE_BYTES = IS_Q8 ? 2 : 0;  // of a row

// Two threads, 0 and 1, copy the scales of a group to `scales`, those of its tile; zeros past the `num_keys`.
DEVICE void copy_scales(u32 scales, const HeadCache& cache, i64 offset, i32 tile, i32 group, i32 num_keys, i32 thread) {
    if (!IS_Q8 || thread >= 2) return;
    const i32 rows = num_keys - tile * TILE_KEYS - group * KEY_GROUP - thread * 8;  // from the thread's first on
    copy_async_bytes(scales + group * (KEY_GROUP * 2) + thread * 16, cache.scales + offset + thread * 8,
                     max(0, min(16, 2 * rows)));
}

// Those of the keys that a lane has of the 8 with number `n` of a tile.
DEVICE u32 load_scales(u32 scales, int n) {
    u32 pair;
    load_words<1>(&pair, scales + n * 16 + threadIdx.x % 4 * 4);
    return pair;
}

DEVICE float load_scale(u32 scale) {
    u16 value;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(scale) : "memory");
    return from_half(value);
}

// Multiplies the weights of 16 rows, A operands, by the scales of a tile's values.
DEVICE void multiply_weights(u32 (&weights)[TILE_GROUPS][4], u32 scales) {
#pragma unroll
    for (int j = 0; j < TILE_GROUPS; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) weights[j][i] = half2_multiply(weights[j][i], load_scales(scales, 2 * j + i / 2));
}

// Walks over a tile's values, of which a lane reads from `values` on 16 columns: use(group, B operands of its columns
// 0..7, of its columns 8..15).
template <int ROW_BYTES, typename Use>
DEVICE void for_value_groups(u32 values, Use use) {
    u32 b[4];
#pragma unroll
    for (int j = 0; j < TILE_GROUPS; j++) {
        if (!IS_Q8 || j % 2 == 0) load_matrices_transposed(b, values + j * KEY_GROUP * ROW_BYTES);
        if constexpr (IS_Q8) {
            const u32 first = b[j % 2 * 2], second = b[j % 2 * 2 + 1];
            const u32 even[2] = {even_codes(first), even_codes(second)}, odd[2] = {odd_codes(first), odd_codes(second)};
            use(j, even, odd);
        } else
            use(j, b, b + 2);
    }
}

// ---- the workspace of divided items

// Loads what other blocks wrote, past the L1 cache.
DEVICE float4 load_shared_result(const float4* pointer) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(pointer));
    return v;
}
DEVICE float2 load_shared_result(const float2* pointer) {
    float2 v;
    asm volatile("ld.global.cg.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(pointer));
    return v;
}

// Returns whether this block is the last of the items of these rows to arrive here. All threads call it, after a
// barrier.
DEVICE bool arrives_last(const AttentionParams& p, const Item& item, i32 kv_head) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        // It acquires and releases for the whole block, by the barriers around it. The last block resets the counter.
        const u32 others = item.num_items - 1;
        u32 arrived;
        asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                     : "=r"(arrived)
                     : "l"(p.work.arrivals + item.arrivals * p.num_kv_heads + kv_head), "r"(others)
                     : "memory");
        last = arrived == others;
    }
    __syncthreads();
    return last;
}

// ---- padding

DEVICE void clear_row(const AttentionParams& p, i32 token) {
    const i32 row_words = p.num_kv_heads * p.group * (HEAD_DIM / 8);
    for (i32 i = threadIdx.x; i < row_words; i += blockDim.x)
        ((uint4*)p.out)[(i64)token * row_words + i] = {0, 0, 0, 0};
}

// Tokens that only fill the step up get zeros. `token` is blockIdx.x, `position` its position, if it has one. In steps
// with prefill a block has many tokens: a warp looks at 32 of them at once.
DEVICE void clear_padding(const AttentionParams& p, i32 token, i32 position) {
    if (position < 0) clear_row(p, token);
    for (i32 first = token + gridDim.x; first < p.num_tokens; first += 32 * gridDim.x) {
        const i32 mine = first + threadIdx.x % 32 * gridDim.x;
        u32 padded = __ballot_sync(ALL_LANES, mine < p.num_tokens && p.positions[mine] < 0);
        for (; padded; padded &= padded - 1) clear_row(p, first + (__ffs(padded) - 1) * gridDim.x);
    }
}

// What is left of prefill work without decode work, which else does it: the padding, which comes last.
DEVICE void end_prefill(const AttentionParams& p) {
    if (p.work.has_both) return;
    for (i32 token = p.work.counts->tokens + blockIdx.x; token < p.num_tokens; token += gridDim.x) clear_row(p, token);
}
