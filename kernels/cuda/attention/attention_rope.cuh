// Decode steps of one token a sequence, with the rotation of Q and K and the write of K and V in the same kernel. A
// block rotates what it needs itself: its queries, and K of the new token if its tiles reach that far. The block with
// the first rows and the last tile writes the cache; nobody reads from there in this launch what it writes.
#pragma once
#include "attention_swapped.cuh"

constexpr int WARP_QUERIES = BLOCK_ROWS / DECODE_WARPS;
constexpr int NEW_KEY = BLOCK_ROWS, NEW_VALUE = BLOCK_ROWS + 1;  // rows of shared memory, after those of the queries
constexpr int NEW_ROWS_BYTES = (BLOCK_ROWS + 2) * QUERY_BYTES;
static_assert(BLOCK_ROWS % DECODE_WARPS == 0 && DECODE_WARPS >= 2, "warp 0 has the new key, warp 1 the new value");

struct RopeAttentionParams {
    AttentionParams attention;  // `qkv` is not rotated yet, and ends with K and V
    RopeParams rope;
    const i32* slots;  // [num_tokens] KV slots: block * block_tokens + row, -1: padding
    i32 num_blocks;    // of the cache
};

// The first tile of a decode block's first round. A round crosses KV splits only where it is the only one, of an item
// that is not divided.
DEVICE i32 first_round(const Item& item) {
    const bool is_only = item.num_items == 1 && item.end_tile - item.first_tile <= DECODE_WARPS;
    return is_only ? item.first_tile : item.first_tile / DECODE_WARPS * DECODE_WARPS;
}
// The tile that a warp begins with.
DEVICE i32 first_tile_of_warp(const Item& item) {
    const i32 tile = first_round(item) + threadIdx.x / 32;
    return tile < item.first_tile ? tile + DECODE_WARPS : tile;
}

// ---- speculation: what a block does before the previous kernel is done. The plan that it reads then may still be that
// of the step before. Where another kernel lies between the plan and this one, as in every model, it is valid, and K
// and V of the tokens before are fetched by it. Where it is not, the block begins again, which costs time.

DEVICE int4 load_unordered(const int4* pointer) {
    int4 v;
    asm volatile("ld.relaxed.gpu.global.v4.s32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(pointer));
    return v;
}
DEVICE i32 load_unordered(const i32* pointer) {
    i32 v;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(pointer));
    return v;
}

// What items[index] is likely to be, or an item without keys. Where kernels do not overlap nothing is speculative.
DEVICE Item speculative_item(const AttentionParams& p, i32 index) {
    Item item = {};
#if __CUDA_ARCH__ >= 900
    const int4 at = load_unordered((const int4*)(p.work.items + index));
    const int4 size = load_unordered((const int4*)(p.work.items + index) + 1);
    const i32 num_items = load_unordered(&p.work.items[index].num_items);
    const i32 count = load_unordered(&p.work.counts->decode_items);
    const bool valid = index < count && (u32)at.x < p.num_tokens && (u32)at.y < p.num_tokens && (u32)at.w < p.group &&
                       size.x > 0 && size.x <= min(BLOCK_ROWS, p.group - at.w) && size.y > 0 &&
                       size.y <= p.max_blocks * p.block_tokens && size.z >= 0 && size.z < size.w &&
                       size.w <= (size.y - 1) / TILE_KEYS + 1;
    if (!valid) return item;
    item.sequence = at.x, item.first_token = at.y, item.first_row = at.w;
    item.num_rows = size.x, item.num_keys = size.y, item.first_tile = size.z, item.end_tile = size.w;
    item.num_items = num_items;
#endif
    return item;
}

// Returns whether what was fetched for one item is what the other one needs.
DEVICE bool same_start(const Item& a, const Item& b) {
    return a.sequence == b.sequence && a.first_token == b.first_token && a.first_row == b.first_row &&
           a.num_rows == b.num_rows && a.num_keys == b.num_keys && a.first_tile == b.first_tile &&
           a.end_tile == b.end_tile && a.num_items == b.num_items;
}

// ---- a block's queries and the new token's K and V

DEVICE void load_queries(Rows<1>& rows, u32 place) {
    const int lane = threadIdx.x % 32;
    const u32 address = place + ((lane & 7) + (lane >> 3 & 1) * 8) * QUERY_BYTES + (lane >> 4) * 16;
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) load_matrices(rows.queries[0][k], address + k * 32);
}
DEVICE void load_queries(SwappedRows& rows, u32 place) {
    const int lane = threadIdx.x % 32;
    const u32 address = place + (lane & 7) * QUERY_BYTES + (lane >> 3) * 16;
#pragma unroll
    for (int k = 0; k < CHUNKS; k += 2) {
        u32 b[4];
        load_matrices(b, address + k * 32);
        rows.queries[k][0] = b[0], rows.queries[k][1] = b[1];
        if (k + 1 < CHUNKS) rows.queries[k + 1][0] = b[2], rows.queries[k + 1][1] = b[3];
    }
}

// Rows see keys up to `position`; of the two that a lane has scores of it may be that not all are wanted.
DEVICE void see(Rows<1>& rows, i32 lowest, i32 position, i32 num_rows) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const bool valid = 8 * half + threadIdx.x % 32 / 4 < num_rows;
        rows.lowest[0][half] = valid ? lowest : 0, rows.highest[0][half] = valid ? position : -1;
    }
}
DEVICE void see(SwappedRows& rows, i32 lowest, i32 position, i32 num_rows) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const bool valid = threadIdx.x % 4 * 2 + e < num_rows;
        rows.lowest[e] = valid ? lowest : 0, rows.highest[e] = valid ? position : -1;
    }
}

struct NewRows {
    static constexpr bool ARE_NEW = true;  // of one token, whose key and value are not in the cache yet
#if defined(ROPE_ROWS) && ROPE_ROWS == 8
    using TileRows = SwappedRows;
    using TileWeights = SwappedWeights;
    using TilePartial = SwappedPartial;
#else
    using TileRows = Rows<1>;
    using TileWeights = Weights<1>;
    using TilePartial = Partial<1>;
#endif

    const RopeAttentionParams& params;
    const HeadLane at;
    const HeadNorm query_norm, key_norm;
    const u16 *queries_at, *new_kv_at;  // what `fetch` loads
    i64 offset = 0;                     // `group_offset` of the warp's first tile, group lane % TILE_GROUPS
    bool copied = false;                // that tile's old keys and values are on their way
    uint2 queries[WARP_QUERIES];        // of the warp: rows warp, warp + DECODE_WARPS ... of the item
    uint2 new_kv;                       // of the new token: K in warp 0, V in warp 1
    uint2 cached_kv;                    // `to_cache` of `new_kv`, of which K is normed and rotated
    Rotation rotation;
    float query_factor;
    i32 slot, speculative_slot;  // KV slots of the new token
    i64 speculative_offset;      // `cache_offset` of `speculative_slot`

    DEVICE explicit NewRows(const RopeAttentionParams& params)
        : params(params),
          at(head_lane(params.rope)),
          query_norm(load_norm(params.rope.query_norm, params.rope.query_epsilon, at)),
          key_norm(load_norm(params.rope.key_norm, params.rope.key_epsilon, at)) {}

    // Before `wait_for_previous`: finds the warp's first tile by a speculative item and begins to copy it.
    DEVICE void begin(const Item& speculative, i32 kv_head, u8* shared) {
        const AttentionParams& p = params.attention;
        if (p.sinks && speculative.num_keys && threadIdx.x == 0)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(p.sinks + kv_head * p.group));
        const i32 tile = first_tile_of_warp(speculative);
        const i32 key = tile * TILE_KEYS + threadIdx.x % TILE_GROUPS * KEY_GROUP;
        bool valid = speculative.num_keys > 0;
        if (tile < speculative.end_tile && key < speculative.num_keys) {
            const i32 index = key / p.block_tokens;
            const i32 block = load_unordered(p.block_tables + (i64)speculative.sequence * p.max_blocks + index);
            valid = (u32)block < params.num_blocks;
            if (valid)
                offset = cache_offset(block * p.block_tokens + key - index * p.block_tokens, kv_head, p.num_kv_heads,
                                      p.block_tokens);
        }
        speculative_slot = speculative.num_keys ? load_unordered(params.slots + speculative.first_token) : -1;
        speculative_offset = cache_offset(max(speculative_slot, 0), kv_head, p.num_kv_heads, p.block_tokens);
        copied = __syncthreads_and(valid);
        if (copied) copy_tile_ahead(p, speculative, tile, shared);
        locate(speculative, kv_head);
        // The compiler would find these addresses behind the wait, were they not used before it.
        prefetch(queries_at), prefetch(new_kv_at);
        if (threadIdx.x < 64) prefetch(cache_row(p, threadIdx.x / 32, speculative_offset));
    }

    DEVICE void copy_tile_ahead(const AttentionParams& p, const Item& item, i32 tile, u8* shared) const {
        const u32 keys = shared_address(shared) + threadIdx.x / 32 * 2 * TILE_BYTES;
        copy_tile(keys, p.cache.keys, offset, tile, item.end_tile, item.num_keys - 1);
        copy_tile(keys + TILE_BYTES, p.cache.values, offset, tile, item.end_tile, item.num_keys - 1);
    }

    // Where a warp stores a row of keys (0) or values (1).
    DEVICE static const u8* cache_row(const AttentionParams& p, int warp, i64 row) {
        return (warp == 0 ? p.cache.keys : p.cache.values).heads + row * (HEAD_DIM * ELEMENT_BYTES);
    }

    // Finds out where an item's queries, K and V are.
    DEVICE void locate(const Item& item, i32 kv_head) {
        const AttentionParams& p = params.attention;
        const int warp = threadIdx.x / 32;
        const u16* heads = p.qkv + (i64)item.first_token * p.qkv_width;
        queries_at = heads + (kv_head * p.group + item.first_row + warp) * HEAD_DIM;
        new_kv_at = heads + ((p.group + warp) * p.num_kv_heads + kv_head) * HEAD_DIM;
    }
    DEVICE void fetch(const Item& item) {
#pragma unroll
        for (int i = 0; i < WARP_QUERIES; i++)
            if (i * DECODE_WARPS + threadIdx.x / 32 < item.num_rows)
                queries[i] = load_head(queries_at + i * DECODE_WARPS * HEAD_DIM, at);
        if (threadIdx.x < 64) new_kv = load_head(new_kv_at, at);
        rotation = load_rotation(params.rope, at, item.first_token);
        query_factor = load_query_factor(params.rope, item.first_token);
        slot = params.slots[item.first_token];
    }
    // Stores them, normed and rotated, in shared memory at `place` [NEW_ROWS_BYTES].
    DEVICE void rotate_into(u8* place, const Item& item) {
        const int warp = threadIdx.x / 32;
        const Rotation of_queries = times(rotation, query_factor);
        // Side by side, so that none waits for the others; what a warp has not fetched is of no importance.
        uint2 heads[WARP_QUERIES + 1];
        const Rotation* rotations[WARP_QUERIES + 1];
        const HeadNorm* norms[WARP_QUERIES + 1];
#pragma unroll
        for (int i = 0; i < WARP_QUERIES; i++)
            heads[i] = queries[i], rotations[i] = &of_queries, norms[i] = &query_norm;
        heads[WARP_QUERIES] = new_kv, rotations[WARP_QUERIES] = &rotation, norms[WARP_QUERIES] = &key_norm;
        rotate_heads(heads, at, rotations, norms);
#pragma unroll
        for (int i = 0; i < WARP_QUERIES; i++) {
            const int row = i * DECODE_WARPS + warp;
            if (row < item.num_rows) store_head((u16*)(place + row * QUERY_BYTES), at, heads[i]);
        }
        if (warp < 2) {
            cached_kv = to_cache(warp == 0 ? heads[WARP_QUERIES] : new_kv);
            u8* const row = place + (NEW_KEY + warp) * QUERY_BYTES;
            store_cached(row, (u16*)(row + HEAD_DIM), at, cached_kv);
        }
    }
    // Does all of it once more for the right item, once the plan is known.
    DEVICE void begin_again(const Item& item, i32 kv_head, u8* shared, u8* place) {
        copy_wait<0>();
        __syncthreads();
        const i32 tile = first_tile_of_warp(item);
        offset = group_offset(params.attention, item, kv_head, tile, threadIdx.x % TILE_GROUPS);
        copy_tile_ahead(params.attention, item, tile, shared);
        locate(item, kv_head);
        fetch(item);
        rotate_into(place, item);
        __syncthreads();
    }

    // Loads the queries into registers, and stores K and V of the new token in the cache.
    template <typename AnyRows>
    DEVICE void load(AnyRows& rows, const AttentionParams& p, const Item& item, i32 kv_head, const u8* place) const {
        const int warp = threadIdx.x / 32;
        if (warp < 2 && item.first_row == 0 && item.end_tile * TILE_KEYS >= item.num_keys && slot >= 0) {
            const i64 to = slot == speculative_slot ? speculative_offset
                                                    : cache_offset(slot, kv_head, p.num_kv_heads, p.block_tokens);
            store_cached(warp == 0 ? p.cache.keys : p.cache.values, to, at, cached_kv);
        }
        load_queries(rows, shared_address(place));
        find_code_bias(rows);
        const i32 position = item.num_keys - 1;
        rows.all_lowest = lowest_key(p, position), rows.all_highest = position;
        see(rows, rows.all_lowest, position, item.num_rows);
    }

    // One warp puts the newest key (or value) into its row of `rows`, the tile that it is in.
    DEVICE static void complete(u8* rows, const Item& item, const u8* row) {
        const int lane = threadIdx.x % 32, key = (item.num_keys - 1) % TILE_KEYS;
        __syncwarp();  // other lanes have filled the row up with zeros
        if (lane < ROW_CHUNKS) ((uint4*)(rows + key * ROW_BYTES))[lane] = ((const uint4*)row)[lane];
        if (IS_Q8 && lane == 0) ((u16*)(rows + TILE_KEYS * ROW_BYTES))[key] = *(const u16*)(row + HEAD_DIM);
    }
};
