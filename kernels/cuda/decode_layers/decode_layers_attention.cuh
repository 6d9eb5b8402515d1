// Blocks that attend: one for each KV head of a token, or of two tokens where there are four. The warps that a token
// has have the tiles of two KV splits at a time, or of one, which are merged in the order of attention_plan.cuh. Keys
// and values of the tokens before are fetched a layer ahead.
#pragma once
#include "decode_layers.cuh"

constexpr int BLOCK_TOKENS = TOKENS > 2 ? 2 : 1, ATTENTION_WARPS = BLOCK_SPLITS * DECODE_WARPS;
constexpr int TOKEN_WARPS = ATTENTION_WARPS / BLOCK_TOKENS, TOKEN_SPLITS = BLOCK_SPLITS / BLOCK_TOKENS;
// Of a token: warps that rotate heads and attend to nothing.
constexpr int HELPING_WARPS = BLOCK_TOKENS > 1 ? 4 : 2;
static_assert(ATTENTION_WARPS + BLOCK_TOKENS * HELPING_WARPS <= LAYER_WARPS, "a block's warps");
static_assert(BLOCK_SPLITS == 2 && DECODE_WARPS == SPLIT_TILES && ATTENTION_WARPS <= LAYER_WARPS, "a tile a warp");
static_assert(BLOCK_ROWS == 8, "columns of a B operand");

struct AttentionScratch {
    u8 tiles[ATTENTION_WARPS][2][TILE_BYTES];  // keys, values
    Exchange exchange[BLOCK_SPLITS];
    alignas(16) u8 new_rows[BLOCK_TOKENS][NEW_ROWS_BYTES];
    Slice second[DECODE_THREADS];  // the second split, as its warps have merged it
};

class AttentionBlock {
    enum Barrier { HEADS_BARRIER = 1, TILES_BARRIER, SPLITS_BARRIER, NUM_BARRIERS = SPLITS_BARRIER };
    static constexpr int HEAD_WARPS = TOKEN_WARPS + HELPING_WARPS;
    static constexpr int WARP_HEADS = (BLOCK_ROWS + 2 + HEAD_WARPS - 1) / HEAD_WARPS;

    const DecodeLayersParams& p;
    const AttentionParams& attention;
    AttentionScratch& scratch;
    const int block_warp = threadIdx.x / 32, helper = block_warp - ATTENTION_WARPS, lane = threadIdx.x % 32;
    const bool helps = helper >= 0;
    // A group of warps has a token, those that help come last.
    const int group = helps ? helper / HELPING_WARPS : block_warp / TOKEN_WARPS;
    const int warp = helps ? TOKEN_WARPS + helper % HELPING_WARPS : block_warp % TOKEN_WARPS;
    const int kv_head, token;
    const int split_number = warp / DECODE_WARPS;  // of those at once
    const HeadLane at;
    Rotation rotation, query_rotation;
    Item item = {};
    u32 keys, values;  // this warp's tiles in shared memory

   public:
    DEVICE AttentionBlock(const DecodeLayersParams& p, u8* shared)
        : p(p),
          attention(p.attention),
          scratch(*(AttentionScratch*)shared),
          kv_head((blockIdx.x - p.cut.attention_block) % p.attention.num_kv_heads),
          token((blockIdx.x - p.cut.attention_block) / p.attention.num_kv_heads * BLOCK_TOKENS + group),
          at(head_lane(p.rope)) {
        keys = shared_address(scratch.tiles[block_warp % ATTENTION_WARPS][0]), values = keys + TILE_BYTES;
    }

    DEVICE void run() {
        if (block_warp >= BLOCK_TOKENS * HEAD_WARPS) return;
        wait_for_previous();
        const i32 position = attention.positions[token], slot = p.slots[token];
        if (position < 0) {
            if (!helps) clear_all();
            return;
        }
        item.sequence = token, item.num_rows = attention.group, item.num_keys = position + 1,
        item.end_tile = position / TILE_KEYS + 1;
        rotation = load_rotation(p.rope, at, token);
        query_rotation = times(rotation, load_query_factor(p.rope, token));
        const i64 first_offset = offset_of(warp);
        const i64 new_offset =
            slot < 0 ? -1 : cache_offset(slot, kv_head, attention.num_kv_heads, attention.block_tokens);
#pragma unroll 1
        for (int l = 0; l < p.cut.num_layers; l++) {
            const DecodeLayer& layer = p.layers[l];
            const LayerWords words(p, l);
            if (!helps) copy(keys, layer.cache.keys, first_offset, warp);
            if (!helps) copy(values, layer.cache.values, first_offset, warp);
            take_heads(p.words + words.qkv(token, 0), layer.cache, new_offset);
            if (!helps) attend(layer.cache, words);
        }
    }

   private:
    // What a row that is nobody's attends to.
    DEVICE void clear_all() const {
        const int num_words = attention.group * (HEAD_DIM / 2);
        for (int l = 0; l < p.cut.num_layers; l++)
            for (int i = warp * 32 + lane; i < num_words; i += TOKEN_WARPS * 32)
                publish(p.words + LayerWords(p, l).attended(token, kv_head * num_words + i), 0);
    }

    DEVICE void copy(u32 place, const HeadCache& cache, i64 offset, i32 tile) const {
        copy_tile(place, cache, offset, tile, item.end_tile, item.num_keys - 1);
    }
    // Of the warps that have the token.
    DEVICE void sync(Barrier barrier) const { sync_warps(group * NUM_BARRIERS + barrier, TOKEN_WARPS); }
    DEVICE u8* new_row(int row) const { return scratch.new_rows[group] + row * QUERY_BYTES; }
    DEVICE Exchange& exchange() const { return scratch.exchange[block_warp / DECODE_WARPS]; }
    DEVICE i64 offset_of(i32 tile) const {
        return tile < item.end_tile ? group_offset(attention, item, kv_head, tile, lane % TILE_GROUPS) : 0;
    }

    // The words of this block's head `row`: its queries, then the new key and value.
    DEVICE const u32* head_words(const u32* qkv, int row) const {
        const i32 group = attention.group, num_heads = group * attention.num_kv_heads;
        const i32 head =
            row < group ? kv_head * group + row : num_heads + (row - group) * attention.num_kv_heads + kv_head;
        return qkv + head * (HEAD_DIM / 2);
    }

    // Waits for this layer's heads, rotates them into `new_rows`, and stores the new key and value in the cache.
    DEVICE void take_heads(const u32* qkv, const LayerCacheParams& cache, i64 new_offset) {
        const int num_rows = attention.group + 2;
        uint2 heads[WARP_HEADS];
        await<WARP_HEADS>(
            [&](int i) {
                // A warp that has none waits for the last one, so as not to come to the barrier a layer early.
                const u32* words = head_words(qkv, min(warp + i * HEAD_WARPS, num_rows - 1));
                heads[i].x = at.valid ? load_word(words + at.first) : 0;
                heads[i].y = at.valid ? load_word(words + at.second) : 0;
            },
            [&](int i) { return heads[i].x != EMPTY && heads[i].y != EMPTY; });
        __syncwarp();
#pragma unroll
        for (int i = 0; i < WARP_HEADS; i++) {
            const int row = warp + i * HEAD_WARPS;
            if (row >= num_rows) break;
            if (row < attention.group) {
                const uint2 query = rotate_head(heads[i], at, query_rotation, HeadNorm{});
                store_head((u16*)new_row(row), at, query);
                continue;
            }
            const bool is_key = row == attention.group;
            const uint2 cached = to_cache(is_key ? rotate_head(heads[i], at, rotation, HeadNorm{}) : heads[i]);
            u8* const place = new_row(is_key ? NEW_KEY : NEW_VALUE);
            store_cached(place, (u16*)(place + HEAD_DIM), at, cached);
            heads[i] = cached;
        }
        const int barrier = group * NUM_BARRIERS + HEADS_BARRIER;
        if (helps)
            arrive_warps(barrier, HEAD_WARPS);
        else
            sync_warps(barrier, HEAD_WARPS);
        // Nobody waits for the cache.
#pragma unroll
        for (int i = 0; i < WARP_HEADS; i++) {
            const int row = warp + i * HEAD_WARPS;
            if (row < attention.group || row >= num_rows || new_offset < 0) continue;
            store_cached(row == attention.group ? cache.keys : cache.values, new_offset, at, heads[i]);
        }
    }

    DEVICE void prepare(SwappedRows& rows) const {
        load_queries(rows, shared_address(new_row(0)));
        find_code_bias(rows);
        rows.all_lowest = 0, rows.all_highest = item.num_keys - 1;
        see(rows, 0, rows.all_highest, item.num_rows);
    }

    // Leaves the partial result of this warp's tile of a round for others, and begins to copy the one of the next
    // round.
    DEVICE void attend_to_tile(const SwappedRows& rows, const LayerCacheParams& cache, i32 tile) {
        const i32 next = tile + TOKEN_WARPS;
        const bool is_newest = tile == (item.num_keys - 1) / TILE_KEYS;
        const i64 offset = offset_of(next);
        SwappedWeights weights;
        SwappedPartial partial;
        copy_wait<1>();
        if (is_newest) NewRows::complete(scratch.tiles[block_warp][0], item, new_row(NEW_KEY));
        __syncwarp();
        score_tile(weights, rows, keys, tile * TILE_KEYS, attention, 1);
        __syncwarp();
        copy(keys, cache.keys, offset, next);
        copy_wait<1>();
        if (is_newest) NewRows::complete(scratch.tiles[block_warp][1], item, new_row(NEW_VALUE));
        __syncwarp();
        weigh_tile(partial, weights, values);
        __syncwarp();
        copy(values, cache.values, offset, next);
        put(exchange(), partial, item.num_rows);
    }

    // Merges the tiles of a split, the first of which is `first`.
    DEVICE void merge_tiles(Slice& split, i32 first) const {
        Slice tiles[DECODE_WARPS];  // fetched together
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++)
            if (first + w < item.end_tile) get(tiles[w], exchange(), w);
        begin(split, tiles[0]);
#pragma unroll
        for (int w = 1; w < DECODE_WARPS; w++)
            if (first + w < item.end_tile) merge(split, tiles[w]);
    }

    DEVICE void attend(const LayerCacheParams& cache, const LayerWords& words) {
        SwappedRows rows;
        prepare(rows);
        const bool merges = slice_row() < item.num_rows;
        u32 to = words.attended(token, (kv_head * attention.group + slice_row()) * (HEAD_DIM / 2));
        compute_now(to);
        Slice whole = {};
#pragma unroll 1
        for (i32 round = 0; round < item.end_tile; round += TOKEN_WARPS) {
            if (round + warp < item.end_tile) attend_to_tile(rows, cache, round + warp);
            sync(TILES_BARRIER);
            Slice split = {};
            const i32 first = round + split_number * DECODE_WARPS;
            if (merges && first < item.end_tile) merge_tiles(split, first);
            const bool has_second = TOKEN_SPLITS > 1 && round + DECODE_WARPS < item.end_tile;
            if (has_second && split_number == 1) scratch.second[threadIdx.x - DECODE_THREADS] = split;
            // The second split is there; and nobody looks at partial results that the next round will overwrite.
            if (has_second || round + TOKEN_WARPS < item.end_tile) sync(SPLITS_BARRIER);
            if (split_number == 0 && merges) {
                if (round == 0)
                    whole = split;  // of which no bit changes when it is merged into nothing
                else
                    merge(whole, split);
                if (has_second) merge(whole, scratch.second[threadIdx.x]);
            }
        }
        if (split_number == 0 && merges) publish_row(whole, to);
    }

    // This thread's slice of a row whose words begin at `to`.
    DEVICE void publish_row(const Slice& whole, u32 to) const {
        const float factor = final_factor(attention, whole.m, whole.l, 0.0f);
#pragma unroll
        for (int q = 0; q < THREAD_QUADS; q++)
            if (slice_column(q) < HEAD_DIM)
                publish(p.words + to + slice_column(q) / 2, pack_half2(whole.o[q].x * factor, whole.o[q].y * factor),
                        pack_half2(whole.o[q].z * factor, whole.o[q].w * factor));
    }
};
