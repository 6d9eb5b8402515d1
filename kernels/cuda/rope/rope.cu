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
