// The same as rope.cu for heads of any length up to 512, with norms of values, and for layers that have queries only. A
// warp has a head of a token.
#include "rope_params.cuh"

struct RopeHeadsParams {
    u16* qkv;          // [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]
    const i32* slots;  // [num_tokens] KV slots: block * block_tokens + row, -1: padding
    LayerCacheParams cache;
    i32 num_tokens, num_heads, num_kv_heads, block_tokens, head_dim;
    RopeParams rope;
    const float* value_norm;  // [head_dim] or null: no norm
    float value_epsilon;
};

constexpr int UNITS = 4;  // of 4 elements that a lane has at most

// Unit `unit` of a head: words `first` and `second`, of two neighbours each, whose low halves are a pair, and so are
// their high halves; or each of which is a pair.
struct Unit {
    i32 first, second;
    bool valid, rotated, apart;
};

DEVICE Unit unit_of(const RopeHeadsParams& p, i32 unit, bool is_value) {
    const bool rotated = !is_value && 2 * unit < p.rope.num_pairs, apart = rotated && p.rope.neox;
    const i32 first = apart ? unit : 2 * unit;
    return {first, apart ? unit + p.rope.num_pairs / 2 : first + 1, unit < p.head_dim / 4, rotated, apart};
}

DEVICE void rotate_pair(float& first, float& second, float cosine, float sine) {
    const float rotated = __fmaf_rn(first, cosine, -__fmul_rn(second, sine));
    second = __fmaf_rn(second, cosine, __fmul_rn(first, sine));
    first = rotated;
}

DEVICE void rotate(float (&x)[4], const Unit& at, float2 cosine, float2 sine, float factor) {
    cosine = {__fmul_rn(cosine.x, factor), __fmul_rn(cosine.y, factor)};
    sine = {__fmul_rn(sine.x, factor), __fmul_rn(sine.y, factor)};
    if (at.apart) {
        rotate_pair(x[0], x[2], cosine.x, sine.x);
        rotate_pair(x[1], x[3], cosine.y, sine.y);
    } else {
        rotate_pair(x[0], x[1], cosine.x, sine.x);
        rotate_pair(x[2], x[3], cosine.y, sine.y);
    }
}

// Grid: 8 heads of any tokens a block.
KERNEL __launch_bounds__(256) rope_heads(const __grid_constant__ RopeHeadsParams p) {
    wait_for_previous();
    const i32 row_heads = p.num_heads + 2 * p.num_kv_heads, index = blockIdx.x * 8 + threadIdx.x / 32;
    const i32 token = index / row_heads, head = index - token * row_heads;
    if (token >= p.num_tokens) return;
    const i32 slot = p.slots[token];
    if (slot < 0) return;
    const bool is_query = head < p.num_heads, is_value = head >= p.num_heads + p.num_kv_heads;
    u16* const from = p.qkv + (i64)index * p.head_dim;
    float x[UNITS][4], squares = 0.0f;
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        const Unit at = unit_of(p, i * 32 + threadIdx.x % 32, is_value);
        const u32 first = at.valid ? ((const u32*)from)[at.first] : 0;
        const u32 second = at.valid ? ((const u32*)from)[at.second] : 0;
        x[i][0] = low_half(first), x[i][1] = high_half(first), x[i][2] = low_half(second), x[i][3] = high_half(second);
#pragma unroll
        for (int e = 0; e < 4; e++) squares = __fmaf_rn(x[i][e], x[i][e], squares);
    }
    const float* norm = is_query ? p.rope.query_norm : is_value ? p.value_norm : p.rope.key_norm;
    const float epsilon = is_query ? p.rope.query_epsilon : is_value ? p.value_epsilon : p.rope.key_epsilon;
    const float inverse = rsqrtf(__fadd_rn(__fdiv_rn(warp_sum(squares), (float)p.head_dim), epsilon));
    const i32 block = slot / p.block_tokens;
    const i32 kv_head = head - p.num_heads - (is_value ? p.num_kv_heads : 0);
    const i64 row = ((i64)block * p.num_kv_heads + kv_head) * p.block_tokens + slot - block * p.block_tokens;
    const HeadCache& cache = is_value ? p.cache.values : p.cache.keys;
    const bool is_coded = IS_Q8 && !is_query;
    u16* const to = is_query ? from : (u16*)(cache.heads + row * p.head_dim * ELEMENT_BYTES);
    const float factor = is_query && p.rope.query_factors ? p.rope.query_factors[token] : 1.0f;
    const i64 angles = (i64)token * (p.rope.num_pairs / 2);
    uint2 words[UNITS];
    u32 largest = 0;
    __syncwarp();  // all lanes have loaded what others store
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        const i32 unit = i * 32 + threadIdx.x % 32;
        const Unit at = unit_of(p, unit, is_value);
        if (!at.valid) break;
        if (norm) {
            const float2 first = ((const float2*)norm)[at.first], second = ((const float2*)norm)[at.second];
            x[i][0] = __fmul_rn(x[i][0], __fmul_rn(inverse, first.x));
            x[i][1] = __fmul_rn(x[i][1], __fmul_rn(inverse, first.y));
            x[i][2] = __fmul_rn(x[i][2], __fmul_rn(inverse, second.x));
            x[i][3] = __fmul_rn(x[i][3], __fmul_rn(inverse, second.y));
        }
        if (at.rotated)
            rotate(x[i], at, ((const float2*)p.rope.cosine)[angles + unit], ((const float2*)p.rope.sine)[angles + unit],
                   factor);
        words[i] = {pack_half2(x[i][0], x[i][1]), pack_half2(x[i][2], x[i][3])};
        largest = larger_magnitude(larger_magnitude(largest, words[i].x), words[i].y);
        if (!is_coded) ((u32*)to)[at.first] = words[i].x, ((u32*)to)[at.second] = words[i].y;
    }
    if (!is_coded) return;
    const u16 scale = scale_of(__reduce_max_sync(ALL_LANES, largest));
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        const Unit at = unit_of(p, i * 32 + threadIdx.x % 32, is_value);
        if (at.valid) store_codes((u8*)to, at.first, at.second, codes_of(words[i], from_half(scale)));
    }
    if (threadIdx.x % 32 == 0) cache.scales[row] = scale;
}
