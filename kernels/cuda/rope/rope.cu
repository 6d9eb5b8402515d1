// Norms of heads, rotation of Q and K, write of K and V. A warp has HEADS heads of one kind of one token,
// fetched together.
#include "rope.cuh"

struct RopeWriteParams {
    u16* qkv;          // [num_tokens, (num_heads + 2 * num_kv_heads) * HEAD_DIM]
    const i32* slots;  // [num_tokens] KV slots: block * block_tokens + row, -1: padding
    LayerCacheParams cache;
    i32 num_tokens, num_heads, num_kv_heads, block_tokens;
    RopeParams rope;
};

// Warps of a token: those of queries, then of keys, then of values.
KERNEL __launch_bounds__(WARPS * 32) rope_write(const __grid_constant__ RopeWriteParams p) {
    const i32 query_warps = (p.num_heads + HEADS - 1) / HEADS, key_warps = (p.num_kv_heads + HEADS - 1) / HEADS;
    const i32 token_warps = query_warps + 2 * key_warps, index = blockIdx.x * WARPS + threadIdx.x / 32;
    const i32 token = (u32)index / (u32)token_warps, warp = index - token * token_warps;
    const bool is_query = warp < query_warps, is_value = warp >= query_warps + key_warps;
    const i32 first = HEADS * (warp - (is_query ? 0 : query_warps) - (is_value ? key_warps : 0));  // head of its kind
    const i32 before = (is_query ? 0 : p.num_heads) + (is_value ? p.num_kv_heads : 0);             // heads of others
    const i32 num_heads = min(HEADS, (is_query ? p.num_heads : p.num_kv_heads) - first);
    const HeadLane at = head_lane(p.rope);
    const HeadNorm norm = load_norm(is_query ? p.rope.query_norm : p.rope.key_norm,
                                    is_query ? p.rope.query_epsilon : p.rope.key_epsilon, at);
    wait_for_previous();
    if (token >= p.num_tokens) return;
    const i32 slot = p.slots[token];
    const Rotation rotation =
        times(load_rotation(p.rope, at, token), is_query ? load_query_factor(p.rope, token) : 1.0f);
    u16* from = p.qkv + ((i64)token * (p.num_heads + 2 * p.num_kv_heads) + before + first) * HEAD_DIM;
    uint2 words[HEADS];
#pragma unroll
    for (int i = 0; i < HEADS; i++)
        if (i < num_heads) words[i] = load_head(from + i * HEAD_DIM, at);
    if (slot < 0) return;
    const i64 offset = cache_offset(slot, first, p.num_kv_heads, p.block_tokens);
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        if (i == num_heads) break;
        const uint2 head = is_value ? words[i] : rotate_head(words[i], at, rotation, norm);
        if (is_query)
            store_head(from + i * HEAD_DIM, at, head);
        else
            store_cached(is_value ? p.cache.values : p.cache.keys, offset + i * p.block_tokens, at, to_cache(head));
    }
}

#ifndef KV_Q8
// ---- heads without norms that are rotated as a whole

constexpr int HEAD_LANES = HEAD_DIM / 8;  // of a head, 8 elements each
constexpr int LANE_HEADS = 32 / HEAD_LANES;

// Of a lane's elements the first four, and the four that lie half a head behind them or come next.
struct HeadPart {
    uint2 first, second;
};

// The same bits as `rotate_head` gives.
DEVICE HeadPart rotate_part(HeadPart part, bool apart, float4 cosine, float4 sine) {
    float x[8] = {low_half(part.first.x),  high_half(part.first.x),  low_half(part.first.y),  high_half(part.first.y),
                  low_half(part.second.x), high_half(part.second.x), low_half(part.second.y), high_half(part.second.y)};
    const float cosines[] = {cosine.x, cosine.y, cosine.z, cosine.w}, sines[] = {sine.x, sine.y, sine.z, sine.w};
    if (apart) {
#pragma unroll
        for (int i = 0; i < 4; i++) rotate_pair(x[i], x[i + 4], cosines[i], sines[i]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) rotate_pair(x[2 * i], x[2 * i + 1], cosines[i], sines[i]);
    }
    return {{pack_half2(x[0], x[1]), pack_half2(x[2], x[3])}, {pack_half2(x[4], x[5]), pack_half2(x[6], x[7])}};
}

// `rope_write` of such heads: a warp has up to HEADS * LANE_HEADS of one token, of all kinds, fetched together.
KERNEL __launch_bounds__(WHOLE_WARPS * 32) rope_write_whole(const __grid_constant__ RopeWriteParams p) {
    const i32 all_heads = p.num_heads + 2 * p.num_kv_heads;
    const i32 token_warps = (all_heads + HEADS * LANE_HEADS - 1) / (HEADS * LANE_HEADS);
    const i32 index = blockIdx.x * WHOLE_WARPS + threadIdx.x / 32, token = (u32)index / (u32)token_warps;
    const int lane = threadIdx.x % 32, part = lane % HEAD_LANES;
    const i32 first = (index - token * token_warps) * HEADS * LANE_HEADS + lane / HEAD_LANES;
    const bool apart = p.rope.neox;
    const i32 first_column = (apart ? 4 : 8) * part, second_column = first_column + (apart ? HEAD_DIM / 2 : 4);
    wait_for_previous();
    if (token >= p.num_tokens || lane >= LANE_HEADS * HEAD_LANES) return;
    const i32 slot = p.slots[token];
    const i64 angles = (i64)token * (HEAD_DIM / 2) + 4 * part;
    const float4 cosine = *(const float4*)(p.rope.cosine + angles), sine = *(const float4*)(p.rope.sine + angles);
    const float factor = load_query_factor(p.rope, token);
    u16* const row = p.qkv + (i64)token * all_heads * HEAD_DIM;
    HeadPart parts[HEADS];
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        const i32 head = first + i * LANE_HEADS;
        if (head >= all_heads) break;
        const u16* from = row + head * HEAD_DIM;
        parts[i] = {*(const uint2*)(from + first_column), *(const uint2*)(from + second_column)};
    }
    if (slot < 0) return;
    const i64 cache_row = cache_offset(slot, 0, p.num_kv_heads, p.block_tokens);
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        const i32 head = first + i * LANE_HEADS, key = head - p.num_heads, value = key - p.num_kv_heads;
        if (head >= all_heads) break;
        u16* to = row + head * HEAD_DIM;
        HeadPart result = parts[i];
        if (key < 0) {
            const float4 own_cosine = {__fmul_rn(cosine.x, factor), __fmul_rn(cosine.y, factor),
                                       __fmul_rn(cosine.z, factor), __fmul_rn(cosine.w, factor)};
            const float4 own_sine = {__fmul_rn(sine.x, factor), __fmul_rn(sine.y, factor), __fmul_rn(sine.z, factor),
                                     __fmul_rn(sine.w, factor)};
            result = rotate_part(result, apart, own_cosine, own_sine);
        } else {
            if (value < 0) result = rotate_part(result, apart, cosine, sine);
            const u8* heads = value < 0 ? p.cache.keys.heads : p.cache.values.heads;
            to = (u16*)heads + (cache_row + (i64)(value < 0 ? key : value) * p.block_tokens) * HEAD_DIM;
        }
        *(uint2*)(to + first_column) = result.first;
        *(uint2*)(to + second_column) = result.second;
    }
}
#endif
