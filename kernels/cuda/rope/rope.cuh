// Norm and rotation of one head of one token by one warp: for the kernel that does only this, and for attention, which
// does it in the same kernel. Everything that decides the bits is here, once.
#pragma once
#include "rope_params.cuh"

static_assert(HEAD_DIM % 8 == 0 && HEAD_DIM <= 128, "a lane has 4 elements of a head, or none");

// A lane's 4 elements: words `first` and `second` of the head, of two neighbours each.
struct HeadLane {
    i32 first, second;
    bool valid;
    bool rotated;
    bool apart;  // the pairs are the low halves of both words and the high halves of both; else each word is a pair
};

DEVICE HeadLane head_lane(const RopeParams& p) {
    const int lane = threadIdx.x % 32;
    const bool rotated = 2 * lane < p.num_pairs, apart = rotated && p.neox;
    const i32 first = apart ? lane : 2 * lane;
    return {first, apart ? lane + p.num_pairs / 2 : first + 1, lane < HEAD_DIM / 4, rotated, apart};
}

DEVICE uint2 load_head(const u16* head, const HeadLane& at) {
    const u32* words = (const u32*)head;
    return at.valid ? uint2{words[at.first], words[at.second]} : uint2{0, 0};
}

DEVICE void store_head(u16* head, const HeadLane& at, uint2 words) {
    if (!at.valid) return;
    ((u32*)head)[at.first] = words.x;
    ((u32*)head)[at.second] = words.y;
}

// The cosines and sines by which a lane rotates its two pairs.
struct Rotation {
    float2 cosine, sine;
};

DEVICE Rotation load_rotation(const RopeParams& p, const HeadLane& at, i32 token) {
    if (!at.rotated) return {};
    const i64 index = (i64)token * (p.num_pairs / 2) + threadIdx.x % 32;
    return {((const float2*)p.cosine)[index], ((const float2*)p.sine)[index]};
}

DEVICE float load_query_factor(const RopeParams& p, i32 token) {
    return p.query_factors ? p.query_factors[token] : 1.0f;
}

// What rotates, and then multiplies by `factor`.
DEVICE Rotation times(const Rotation& rotation, float factor) {
    return {{__fmul_rn(rotation.cosine.x, factor), __fmul_rn(rotation.cosine.y, factor)},
            {__fmul_rn(rotation.sine.x, factor), __fmul_rn(rotation.sine.y, factor)}};
}

// A head norm, and what a lane needs of it. Its weights are constant: they may be loaded before `wait_for_previous`.
struct HeadNorm {
    bool wanted;
    float epsilon;
    float2 first, second;
};

DEVICE HeadNorm load_norm(const float* weight, float epsilon, const HeadLane& at) {
    if (!weight || !at.valid) return {weight != nullptr, epsilon, {}, {}};
    return {true, epsilon, ((const float2*)weight)[at.first], ((const float2*)weight)[at.second]};
}

DEVICE void rotate_pair(float& first, float& second, float cosine, float sine) {
    const float rotated = __fmaf_rn(first, cosine, -__fmul_rn(second, sine));
    second = __fmaf_rn(second, cosine, __fmul_rn(first, sine));
    first = rotated;
}

// The sums of squares of several heads' elements divided by HEAD_DIM, side by side.
template <int COUNT>
DEVICE void mean_squares(float (&means)[COUNT], const float (&x)[COUNT][4], const HeadLane& at) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const float (&four)[4] = x[i];
        float squares = __fmul_rn(four[0], four[0]);
        squares = at.apart ? __fmaf_rn(four[2], four[2], squares) : __fmaf_rn(four[1], four[1], squares);
        squares = at.apart ? __fmaf_rn(four[1], four[1], squares) : __fmaf_rn(four[2], four[2], squares);
        means[i] = __fmaf_rn(four[3], four[3], squares);
    }
#pragma unroll
    for (int distance = 16; distance; distance >>= 1)  // as `warp_sum` does
#pragma unroll
        for (int i = 0; i < COUNT; i++) means[i] += __shfl_xor_sync(ALL_LANES, means[i], distance);
    constexpr bool is_power_of_2 = (HEAD_DIM & (HEAD_DIM - 1)) == 0;  // then the product has the same bits
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        means[i] = is_power_of_2 ? __fmul_rn(means[i], 1.0f / HEAD_DIM) : __fdiv_rn(means[i], HEAD_DIM);
}

// A lane's elements of heads, normed and rotated, each by its own; all are normed, or none. All lanes of a warp call
// it.
template <int COUNT>
DEVICE void rotate_heads(uint2 (&heads)[COUNT], const HeadLane& at, const Rotation* const (&rotations)[COUNT],
                         const HeadNorm* const (&norms)[COUNT]) {
    float x[COUNT][4];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        x[i][0] = low_half(heads[i].x), x[i][1] = high_half(heads[i].x);
        x[i][2] = low_half(heads[i].y), x[i][3] = high_half(heads[i].y);
    }
    if (norms[0]->wanted) {
        float means[COUNT];
        mean_squares(means, x, at);
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const HeadNorm& norm = *norms[i];
            const float inverse = rsqrtf(__fadd_rn(means[i], norm.epsilon));
            x[i][0] = __fmul_rn(x[i][0], __fmul_rn(inverse, norm.first.x));
            x[i][1] = __fmul_rn(x[i][1], __fmul_rn(inverse, norm.first.y));
            x[i][2] = __fmul_rn(x[i][2], __fmul_rn(inverse, norm.second.x));
            x[i][3] = __fmul_rn(x[i][3], __fmul_rn(inverse, norm.second.y));
        }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const Rotation& rotation = *rotations[i];
        // Without a branch: elements 0 and 2, 1 and 3 are pairs, or 0 and 1, 2 and 3.
        float first[2] = {x[i][0], at.apart ? x[i][1] : x[i][2]}, second[2] = {at.apart ? x[i][2] : x[i][1], x[i][3]};
        rotate_pair(first[0], second[0], rotation.cosine.x, rotation.sine.x);
        rotate_pair(first[1], second[1], rotation.cosine.y, rotation.sine.y);
        if (at.rotated) {
            x[i][0] = first[0], x[i][1] = at.apart ? first[1] : second[0];
            x[i][2] = at.apart ? second[0] : first[1], x[i][3] = second[1];
        }
        heads[i] = {pack_half2(x[i][0], x[i][1]), pack_half2(x[i][2], x[i][3])};
    }
}
DEVICE uint2 rotate_head(uint2 words, const HeadLane& at, const Rotation& rotation, const HeadNorm& norm) {
    uint2 heads[1] = {words};
    rotate_heads(heads, at, {&rotation}, {&norm});
    return heads[0];
}

// ---- the cache

// What goes there of a lane's elements, or its four codes and the head's scale. All lanes of a warp call it.
DEVICE uint2 to_cache(uint2 words) {
    if constexpr (IS_Q8) {
        const u32 largest = larger_magnitude(larger_magnitude(0, words.x), words.y);
        const u16 scale = scale_of(__reduce_max_sync(ALL_LANES, largest));
        return {codes_of(words, from_half(scale)), scale};
    } else
        return words;
}

DEVICE void store_cached(u8* head, u16* scale, const HeadLane& at, uint2 cached) {
    if constexpr (!IS_Q8)
        store_head((u16*)head, at, cached);
    else {
        if (at.valid) store_codes(head, at.first, at.second, cached.x);
        if (threadIdx.x % 32 == 0) *scale = (u16)cached.y;
    }
}
DEVICE void store_cached(const HeadCache& cache, i64 row, const HeadLane& at, uint2 cached) {
    store_cached(cache.heads + row * (HEAD_DIM * ELEMENT_BYTES), cache.scales + row, at, cached);
}

// The number of rows that lie before KV slot `slot` of one KV head.
DEVICE i64 cache_offset(i32 slot, i32 kv_head, i32 num_kv_heads, i32 block_tokens) {
    const i32 block = slot / block_tokens;
    return ((i64)block * num_kv_heads + kv_head) * block_tokens + slot - block * block_tokens;
}
