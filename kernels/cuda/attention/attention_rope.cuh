// Decode steps of one token a sequence, with the rotation of Q and K and the write of K and V in the same kernel. A
// block rotates what it needs itself: its queries, and K of the new token if its tiles reach that far. The block with
// the first rows and the last tile writes the cache; nobody reads from there in this launch what it writes.
#pragma once
#include "attention.cuh"

constexpr int WARP_QUERIES = DECODE_ROWS / DECODE_WARPS;
constexpr int NEW_KEY = DECODE_ROWS, NEW_VALUE = DECODE_ROWS + 1;  // rows of shared memory, after those of the queries
constexpr int NEW_ROWS_BYTES = (DECODE_ROWS + 2) * ROW_BYTES;
static_assert(DECODE_ROWS % DECODE_WARPS == 0 && DECODE_WARPS >= 2, "warp 0 has the new key, warp 1 the new value");

struct RopeAttentionParams {
    AttentionParams attention;  // `qkv` is not rotated yet, and ends with K and V
    RopeParams rope;
    const i32* slots;  // [num_tokens] block * block_tokens + row, -1: padding
    i32 num_blocks;    // of the cache
};

// The tile that a warp of a decode block begins with.
DEVICE i32 first_tile_of_warp(const Item& item) {
    const i32 tile = item.first_tile / DECODE_WARPS * DECODE_WARPS + threadIdx.x / 32;
    return tile < item.first_tile ? tile + DECODE_WARPS : tile;
}

// ---- before the previous kernel is done: the plan is a guess. It is right where another kernel lies between
// the plan and this one, as in every model, so K and V of the tokens before are fetched by it; a wrong one costs time.

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

// Where items[index] may lead, or an item without keys. Where kernels do not overlap there is no time to guess.
DEVICE Item guess_item(const AttentionParams& p, i32 index) {
    Item item = {};
#if __CUDA_ARCH__ >= 900
    const int4 at = load_unordered((const int4*)(p.work.items + index));
    const int4 size = load_unordered((const int4*)(p.work.items + index) + 1);
    const i32 count = load_unordered(&p.work.counts->decode_items);
    const bool sound = index < count && (u32)at.x < p.num_tokens && (u32)at.y < p.num_tokens && (u32)at.w < p.group &&
                       size.x > 0 && size.x <= min(DECODE_ROWS, p.group - at.w) && size.y > 0 &&
                       size.y <= p.max_blocks * p.block_tokens && size.z >= 0 && size.z < size.w &&
                       size.w <= (size.y - 1) / TILE_KEYS + 1;
    if (!sound) return item;
    item.sequence = at.x, item.first_token = at.y, item.first_row = at.w;
    item.num_rows = size.x, item.num_keys = size.y, item.first_tile = size.z, item.end_tile = size.w;
#endif
    return item;
}

// What follows from the guess.
DEVICE bool same_start(const Item& a, const Item& b) {
    return a.sequence == b.sequence && a.first_token == b.first_token && a.first_row == b.first_row &&
           a.num_rows == b.num_rows && a.num_keys == b.num_keys && a.first_tile == b.first_tile &&
           a.end_tile == b.end_tile;
}

// ---- a block's queries and the new token's K and V

struct NewRows {
    static constexpr bool ARE_NEW = true;  // of one token, whose key and value are not in the cache yet

    const RopeAttentionParams& params;
    const HeadLane at;
    const HeadNorm query_norm, key_norm;
    const u16 *queries_at, *fresh_at;  // what `fetch` loads
    i64 offset = 0;                    // `group_offset` of the warp's first tile, group lane % TILE_GROUPS
    bool copied = false;               // that tile's old keys and values are on their way
    uint2 queries[WARP_QUERIES];       // of the warp: rows warp, warp + DECODE_WARPS ... of the item
    uint2 fresh;                       // K of warp 0, V of warp 1
    uint2 turned;                      // `fresh`, as it goes to the cache
    Turn turn;
    i32 slot, likely_slot;
    i64 likely_offset;  // `cache_offset` of that

    DEVICE explicit NewRows(const RopeAttentionParams& params)
        : params(params),
          at(head_lane(params.rope)),
          query_norm(load_norm(params.rope.query_norm, params.rope.query_epsilon, at)),
          key_norm(load_norm(params.rope.key_norm, params.rope.key_epsilon, at)) {}

    // By a guess, before `wait_for_previous`: finds the warp's first tile and begins to copy it.
    DEVICE void begin(const Item& guess, i32 kv_head, u8* shared) {
        const AttentionParams& p = params.attention;
        if (p.sinks && guess.num_keys && threadIdx.x == 0)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(p.sinks + kv_head * p.group));
        const i32 tile = first_tile_of_warp(guess);
        const i32 key = tile * TILE_KEYS + threadIdx.x % TILE_GROUPS * KEY_GROUP;
        bool sound = guess.num_keys > 0;
        if (tile < guess.end_tile && key < guess.num_keys) {
            const i32 index = key / p.block_tokens;
            const i32 block = load_unordered(p.block_tables + (i64)guess.sequence * p.max_blocks + index);
            sound = (u32)block < params.num_blocks;
            if (sound)
                offset = cache_offset(block * p.block_tokens + key - index * p.block_tokens, kv_head, p.num_kv_heads,
                                      p.block_tokens);
        }
        likely_slot = guess.num_keys ? load_unordered(params.slots + guess.first_token) : -1;
        likely_offset = cache_offset(max(likely_slot, 0), kv_head, p.num_kv_heads, p.block_tokens);
        copied = __syncthreads_and(sound);
        if (copied) copy_tile_ahead(p, guess, tile, shared);
        aim(guess, kv_head);
        compute_now(queries_at), compute_now(fresh_at), compute_now(likely_offset);
    }

    DEVICE void copy_tile_ahead(const AttentionParams& p, const Item& item, i32 tile, u8* shared) const {
        const u32 keys = shared_address(shared) + threadIdx.x / 32 * 2 * TILE_BYTES;
        copy_tile(keys, p.cache.keys, offset, tile, item.end_tile, item.num_keys - 1);
        copy_tile(keys + TILE_BYTES, p.cache.values, offset, tile, item.end_tile, item.num_keys - 1);
    }

    // Finds out where an item's queries, K and V are.
    DEVICE void aim(const Item& item, i32 kv_head) {
        const AttentionParams& p = params.attention;
        const int warp = threadIdx.x / 32;
        const u16* heads = p.qkv + (i64)item.first_token * p.qkv_width;
        queries_at = heads + (kv_head * p.group + item.first_row + warp) * HEAD_DIM;
        fresh_at = heads + ((p.group + warp) * p.num_kv_heads + kv_head) * HEAD_DIM;
    }
    DEVICE void fetch(const Item& item) {
#pragma unroll
        for (int i = 0; i < WARP_QUERIES; i++)
            if (i * DECODE_WARPS + threadIdx.x / 32 < item.num_rows)
                queries[i] = load_head(queries_at + i * DECODE_WARPS * HEAD_DIM, at);
        if (threadIdx.x < 64) fresh = load_head(fresh_at, at);
        turn = load_turn(params.rope, at, item.first_token);
        slot = params.slots[item.first_token];
    }
    // Rotated, to shared memory at `place` [NEW_ROWS_BYTES].
    DEVICE void turn_to(u8* place, const Item& item) {
        const int warp = threadIdx.x / 32;
#pragma unroll
        for (int i = 0; i < WARP_QUERIES; i++) {
            const int row = i * DECODE_WARPS + warp;
            if (row < item.num_rows)  // what rows hold that nobody asks for is of no importance
                store_head((u16*)(place + row * ROW_BYTES), at, turn_head(queries[i], at, turn, query_norm));
        }
        if (warp < 2) {
            turned = warp == 0 ? turn_head(fresh, at, turn, key_norm) : fresh;
            store_head((u16*)(place + (NEW_KEY + warp) * ROW_BYTES), at, turned);
        }
    }
    // Once the plan is known.
    DEVICE void begin_again(const Item& item, i32 kv_head, u8* shared, u8* place) {
        copy_wait<0>();
        __syncthreads();
        const i32 tile = first_tile_of_warp(item);
        offset = group_offset(params.attention, item, kv_head, tile, threadIdx.x % TILE_GROUPS);
        copy_tile_ahead(params.attention, item, tile, shared);
        aim(item, kv_head);
        fetch(item);
        turn_to(place, item);
        __syncthreads();
    }

    // To registers; K and V also to the cache.
    DEVICE void load(Rows<1>& rows, const AttentionParams& p, const Item& item, i32 kv_head, const u8* place) const {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        if (warp < 2 && item.first_row == 0 && item.end_tile * TILE_KEYS >= item.num_keys && slot >= 0) {
            const i64 to =
                slot == likely_slot ? likely_offset : cache_offset(slot, kv_head, p.num_kv_heads, p.block_tokens);
            store_head((warp == 0 ? p.cache.keys : p.cache.values) + to, at, turned);
        }
        const u32 address = shared_address(place) + ((lane & 7) + (lane >> 3 & 1) * 8) * ROW_BYTES + (lane >> 4) * 16;
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) load_matrices(rows.queries[0][k], address + k * 32);
        const i32 position = item.num_keys - 1;
        rows.all_lowest = lowest_key(p, position), rows.all_highest = position;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const bool valid = 8 * half + lane / 4 < item.num_rows;
            rows.lowest[0][half] = valid ? rows.all_lowest : 0;
            rows.highest[0][half] = valid ? position : -1;
        }
    }

    // By one warp: puts the newest key (or value) into its row of `rows`, the tile that it is in.
    DEVICE static void complete(u8* rows, const Item& item, const u8* row) {
        const int lane = threadIdx.x % 32;
        __syncwarp();  // other lanes have filled the row up with zeros
        if (lane < HEAD_DIM / 8)
            ((uint4*)(rows + (item.num_keys - 1) % TILE_KEYS * ROW_BYTES))[lane] = ((const uint4*)row)[lane];
    }
};
