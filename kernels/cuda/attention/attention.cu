// Attention over the paged KV cache. attention_plan.cuh says how the work is cut, attention.cuh what a warp does,
// attention_merge.cuh what becomes of several warps' results.
//   attention_decode        few query rows: the tiles of a split go to different warps, long contexts to several blocks
//   rope_attention_decode   the same for steps of one token a sequence, which attention_rope.cuh completes on the way;
//                           with ROPE_ROWS, the most query rows of a block, there is this one only, else the others
//   attention_prefill       many query rows: warps share K and V tiles and walk over all tiles
#include "attention_rope.cuh"
#include "attention_merge.cuh"

// ---- decode

// Queries that are rotated already, of tokens whose K and V are in the cache.
struct OldRows {
    static constexpr bool ARE_NEW = false;
    using TileRows = Rows<1>;
    using TileWeights = Weights<1>;
    using TilePartial = Partial<1>;

    DEVICE void load(Rows<1>& rows, const AttentionParams& p, const Item& item, i32 kv_head, u8*) const {
        load_rows(rows, p, item, kv_head, 0);
    }
    DEVICE static void complete(u8*, const Item&, const u8*) {}
};

// Computes an item. The copies of each warp's first tile, keys and then values, have begun before.
template <class Source>
DEVICE void decode_item(const AttentionParams& p, const Item& item, i32 kv_head, const Source& source, u8* shared) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = slice_row();
    Exchange& exchange = exchange_at(shared);
    u8* const new_rows = new_rows_at(shared);
    u8 *const key_tile = shared + 2 * warp * TILE_BYTES, *const value_tile = key_tile + TILE_BYTES;
    const u32 keys = shared_address(key_tile), values = keys + TILE_BYTES;
    const i32 num_cached = item.num_keys - Source::ARE_NEW, newest_tile = (item.num_keys - 1) / TILE_KEYS;
    const int halves = item.num_rows > DECODE_ROWS / 2 ? 2 : 1;

    typename Source::TileRows rows;
    source.load(rows, p, item, kv_head, new_rows);
    const bool merges = row < item.num_rows;
    auto partial_row = [&](i32 split) {
        return (i64)(item.partial_row + split * item.num_rows + row) * p.num_kv_heads + kv_head;
    };
    i32 token = 0, head = kv_head * p.group + item.first_row + row;  // of new rows, one token's
    if (!Source::ARE_NEW) locate(p, item, kv_head, row, token, head);
    u16* const out = p.out + ((i64)(item.first_token + token) * p.num_kv_heads * p.group + head) * HEAD_DIM;
    const float sink = merges ? load_sink(p, head) : 0.0f;
    Slice split, whole;
    clear(split);
    clear(whole);
    // Steps of which every token is new have no prefix groups.
    const bool has_prefix = !Source::ARE_NEW && merges && item.prefix.num_closed;
    if (has_prefix) {
        if (item.num_items == 1) merge_prefix(whole, p, item, kv_head, row);
        if (item.first_tile / SPLIT_TILES == item.first_split) load_open_split(split, p, item, kv_head, row);
    }

    for (i32 round = first_round(item); round < item.end_tile; round += DECODE_WARPS) {
        const i32 tile = round + warp, next = tile + DECODE_WARPS;
        if (tile >= item.first_tile && tile < item.end_tile) {
            typename Source::TileWeights weights;
            typename Source::TilePartial partial;
            const i64 offset = next < item.end_tile ? group_offset(p, item, kv_head, next, lane % TILE_GROUPS) : 0;
            copy_wait<1>();
            if (Source::ARE_NEW && tile == newest_tile)
                Source::complete(key_tile, item, new_rows + NEW_KEY * QUERY_BYTES);
            __syncwarp();
            score_tile(weights, rows, keys, tile * TILE_KEYS, p, halves);
            __syncwarp();
            copy_tile(keys, p.cache.keys, offset, next, item.end_tile, num_cached);
            copy_wait<1>();
            if (Source::ARE_NEW && tile == newest_tile)
                Source::complete(value_tile, item, new_rows + NEW_VALUE * QUERY_BYTES);
            __syncwarp();
            weigh_tile(partial, weights, values);
            __syncwarp();
            copy_tile(values, p.cache.values, offset, next, item.end_tile, num_cached);
            put(exchange, partial, item.num_rows);
        }
        __syncthreads();
        if (merges) {
            const i32 end = min(round + DECODE_WARPS, item.end_tile);
            i32 first = max(round, item.first_tile), next;
            do {  // once, or for each of two KV splits
                next = min(end, (first / SPLIT_TILES + 1) * SPLIT_TILES);
                Slice others[DECODE_WARPS];  // fetched together; merging nothing changes no bit
#pragma unroll
                for (int w = 0; w < DECODE_WARPS; w++) {
                    clear(others[w]);
                    if (round + w >= first && round + w < next) get(others[w], exchange, w);
                }
#pragma unroll
                for (int w = 0; w < DECODE_WARPS; w++) merge(split, others[w]);
                if (next % SPLIT_TILES == 0 || next == item.end_tile) {
                    if (item.num_items == 1)
                        merge(whole, split);
                    else
                        store(p, partial_row(round / SPLIT_TILES), split);
                    clear(split);
                }
                first = next;
            } while (first < end);
        }
        if (round + DECODE_WARPS < item.end_tile) __syncthreads();
    }

    if (item.num_items > 1) {
        __syncthreads();
        if (!arrives_last(p, item, kv_head)) return;
    }
    if (!merges) return;
    if (item.num_items > 1) {
        if (has_prefix) merge_prefix(whole, p, item, kv_head, row);
#pragma unroll 4
        for (i32 s = item.first_split; s < item.end_split; s++) {
            Slice other;
            load(other, p, partial_row(s));
            merge(whole, other);
        }
    }
    const float factor = final_factor(p, whole.m, whole.l, sink);
#pragma unroll
    for (int q = 0; q < THREAD_QUADS; q++)
        if (slice_column(q) < HEAD_DIM)
            *(uint2*)(out + slice_column(q)) = {pack_half2(whole.o[q].x * factor, whole.o[q].y * factor),
                                                pack_half2(whole.o[q].z * factor, whole.o[q].w * factor)};
}

#ifndef ROPE_ROWS
// Grid: at least decode items * KV heads; dynamic shared memory: 2 * DECODE_WARPS * TILE_BYTES + sizeof(Exchange).
KERNEL __launch_bounds__(DECODE_THREADS) attention_decode(const __grid_constant__ AttentionParams p) {
    extern __shared__ __align__(16) u8 shared[];
    // After attention_prefix all that it does not write is there already, and after prefill work everything.
    const bool follows_prefix = p.work.prefix.items != nullptr, follows_prefill = p.work.has_both && !follows_prefix;
    if (follows_prefix || follows_prefill)
        acquire();
    else
        wait_for_previous();
    const i32 index = blockIdx.x / p.num_kv_heads, kv_head = blockIdx.x - index * p.num_kv_heads;
    const Item item = p.work.items[index];  // the grid has no block without an entry, though it may hold nothing
    const i32 token = blockIdx.x, position = token < p.num_tokens ? p.positions[token] : 0;
    const bool exists = index < p.work.counts->decode_items;
    if (exists) {
        const i32 tile = first_tile_of_warp(item);
        const i64 offset = group_offset(p, item, kv_head, tile, threadIdx.x % TILE_GROUPS);
        const u32 keys = shared_address(shared) + threadIdx.x / 32 * 2 * TILE_BYTES;
        copy_tile(keys, p.cache.keys, offset, tile, item.end_tile, item.num_keys);
        copy_tile(keys + TILE_BYTES, p.cache.values, offset, tile, item.end_tile, item.num_keys);
    }
    if (follows_prefix) wait_for_previous();
    if (exists) decode_item(p, item, kv_head, OldRows{}, shared);
    clear_padding(p, token, position);
    if (follows_prefill && blockIdx.x == 0) wait_for_previous();  // so that this kernel ends after that one
}

#else

// The grid is that of attention_decode; the shared memory is larger by NEW_ROWS_BYTES.
KERNEL __launch_bounds__(DECODE_THREADS) rope_attention_decode(const __grid_constant__ RopeAttentionParams params) {
    extern __shared__ __align__(16) u8 shared[];
    const AttentionParams& p = params.attention;
    // Few blocks of one token's have work: those of the product that follows take the places of the others.
    if (p.num_tokens == 1) start_next();
    const i32 index = blockIdx.x / p.num_kv_heads, kv_head = blockIdx.x - index * p.num_kv_heads;
    const Item speculative = speculative_item(p, index);
    NewRows rows(params);
    rows.begin(speculative, kv_head, shared);
    wait_for_previous();
    const Item item = p.work.items[index];
    const bool exists = index < p.work.counts->decode_items;
    const i32 token = blockIdx.x, position = token < p.num_tokens ? p.positions[token] : 0;
    u8* const place = new_rows_at(shared);
    if (rows.copied) {
        rows.fetch(speculative);
        rows.rotate_into(place, speculative);
    }
    // All threads are asked: each has read the plan for itself, and they may have read different ones.
    const bool was_valid = __syncthreads_and(rows.copied && same_start(speculative, item));
    if (exists && !was_valid) rows.begin_again(item, kv_head, shared, place);
    if (exists) decode_item(p, item, kv_head, rows, shared);
    clear_padding(p, token, position);
}

#endif
#ifndef ROPE_ROWS
// ---- prefill

constexpr int PREFILL_THREADS = PREFILL_WARPS * 32;
constexpr int WARP_ROWS = 16 * PREFILL_ROW_TILES;
// So many blocks fit an SM with the registers that the compiler needs, which are fewest for Hopper.
constexpr int PREFILL_BLOCKS =
    (HEAD_DIM == 64 && PREFILL_ROW_TILES == 1) || (HEAD_DIM == 96 && __CUDA_ARCH__ == 900 && !IS_Q8) ? 3 : 2;

// A thread's merged splits, kept in shared memory while it works on the next split; nobody else looks at them.
struct Whole {
    float m[PREFILL_ROW_TILES][2], l[PREFILL_ROW_TILES][2];
    float4* o;  // element i of this thread at o[i * PREFILL_THREADS]
};

// whole := whole + split, split := nothing.
DEVICE void close_split(Whole& whole, Partial<PREFILL_ROW_TILES>& split) {
#pragma unroll
    for (int row_tile = 0; row_tile < PREFILL_ROW_TILES; row_tile++) {
        float keep[2], add[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            whole.m[row_tile][half] =
                merge_weights(whole.m[row_tile][half], split.m[row_tile][half], keep[half], add[half]);
            whole.l[row_tile][half] = merged(whole.l[row_tile][half], keep[half], split.l[row_tile][half], add[half]);
        }
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
            float4& o = whole.o[(row_tile * (HEAD_DIM / 8) + n) * PREFILL_THREADS];
            const float (&s)[4] = split.o[row_tile][n];
            o = {merged(o.x, keep[0], s[0], add[0]), merged(o.y, keep[0], s[1], add[0]),
                 merged(o.z, keep[1], s[2], add[1]), merged(o.w, keep[1], s[3], add[1])};
        }
    }
    clear(split);
}

DEVICE void write_rows(const AttentionParams& p, const Item& item, i32 kv_head, i32 first, const Whole& whole) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int row_tile = 0; row_tile < PREFILL_ROW_TILES; row_tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const i32 row = first + 16 * row_tile + 8 * half + g;
            if (row >= item.num_rows) continue;
            i32 token, head;
            locate(p, item, kv_head, row, token, head);
            const float factor = final_factor(p, whole.m[row_tile][half], whole.l[row_tile][half], load_sink(p, head));
            const i64 out_row = (i64)(item.first_token + token) * p.num_kv_heads * p.group + head;
            u32* out = (u32*)(p.out + out_row * HEAD_DIM) + t;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) {
                const float4 o = whole.o[(row_tile * (HEAD_DIM / 8) + n) * PREFILL_THREADS];
                out[4 * n] = half ? pack_half2(o.z * factor, o.w * factor) : pack_half2(o.x * factor, o.y * factor);
            }
        }
}

DEVICE void prefill_item(const AttentionParams& p, const Item& item, i32 kv_head, u8* shared) {
    const int thread = threadIdx.x, warp = thread / 32;
    const u32 keys = shared_address(shared), values = keys + TILE_BYTES;
    Whole whole;
    whole.o = (float4*)(shared + 2 * TILE_BYTES) + thread;
#pragma unroll
    for (int row_tile = 0; row_tile < PREFILL_ROW_TILES; row_tile++) {
#pragma unroll
        for (int half = 0; half < 2; half++)
            whole.m[row_tile][half] = NEGATIVE_INFINITY, whole.l[row_tile][half] = 0.0f;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++)
            whole.o[(row_tile * (HEAD_DIM / 8) + n) * PREFILL_THREADS] = {0.0f, 0.0f, 0.0f, 0.0f};
    }

    static_assert(TILE_GROUPS == PREFILL_WARPS, "each warp copies one group of 16 keys");
    const i32 step_blocks = TILE_KEYS / p.block_tokens;
    GroupWalk walk(p, item, item.first_tile, warp);
    i64 offset = walk.offset(p, kv_head);
    copy_group(keys, p.cache.keys, offset, item.first_tile, warp, item.num_keys);
    copy_commit();
    walk.advance(p, item.num_keys, step_blocks);

    Rows<PREFILL_ROW_TILES> rows;
    load_rows(rows, p, item, kv_head, warp * WARP_ROWS);
    // Tiles that some of the warp's rows see: from its first row's lowest key to its last row's position.
    const i32 last_row = min((warp + 1) * WARP_ROWS, item.num_rows) - 1;
    const i32 first_key = lowest_key(p, rows.all_highest);
    const i32 last_key = rows.any ? item.first_position + (item.first_row + last_row) / p.group : -1;
    Partial<PREFILL_ROW_TILES> split;
    clear(split);
    for (i32 tile = item.first_tile; tile < item.end_tile; tile++) {
        const bool seen = tile * TILE_KEYS <= last_key && (tile + 1) * TILE_KEYS > first_key;
        const bool more = tile + 1 < item.end_tile;
        Weights<PREFILL_ROW_TILES> weights;
        copy_wait<0>();
        __syncthreads();  // the keys are there, and nobody reads values any more
        copy_group(values, p.cache.values, offset, tile, warp, item.num_keys);
        copy_commit();
        if (seen) score_tile(weights, rows, keys, tile * TILE_KEYS, p, 2);
        copy_wait<0>();
        __syncthreads();  // the values are there, and nobody reads keys any more
        if (more) {
            offset = walk.offset(p, kv_head);
            copy_group(keys, p.cache.keys, offset, tile + 1, warp, item.num_keys);
            walk.advance(p, item.num_keys, step_blocks);
        }
        copy_commit();
        if (seen) merge_tile(split, weights, values);
        if ((tile + 1) % SPLIT_TILES == 0 || !more) close_split(whole, split);
    }
    if (rows.any) write_rows(p, item, kv_head, warp * WARP_ROWS, whole);
}

// Grid: at least prefill items * KV heads * PREFILL_PARTS; dynamic shared memory: 2 * TILE_BYTES + PREFILL_WARPS *
// WARP_ROWS rows of HEAD_DIM floats.
KERNEL __launch_bounds__(PREFILL_THREADS, PREFILL_BLOCKS) attention_prefill(const __grid_constant__ AttentionParams p) {
    extern __shared__ __align__(16) u8 shared[];
    wait_for_previous();
    const i32 number = blockIdx.x / PREFILL_PARTS, index = number / p.num_kv_heads;
    if (index < p.work.counts->prefill_items) {
        Item item = p.work.items[index];
        if (PREFILL_PARTS == 1 || take_part(p, item, blockIdx.x % PREFILL_PARTS, PREFILL_WARPS * WARP_ROWS))
            prefill_item(p, item, number - index * p.num_kv_heads, shared);
    }
    end_prefill(p);
}
#endif
