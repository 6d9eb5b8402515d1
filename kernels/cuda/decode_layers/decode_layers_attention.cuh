// Blocks that attend: one for each KV head of a token, or of two tokens where there are eight. The warps that a token
// has have the tiles of two KV splits at a time, or of one, which are merged in the order of attention_plan.cuh. Keys
// and values of the tokens before are fetched a layer ahead.
#pragma once
#include "tile_operands.cuh"

constexpr int BLOCK_TOKENS = TOKENS > 4 ? 2 : 1, ATTENTION_WARPS = BLOCK_SPLITS * DECODE_WARPS;
constexpr int TOKEN_WARPS = ATTENTION_WARPS / BLOCK_TOKENS, TOKEN_SPLITS = BLOCK_SPLITS / BLOCK_TOKENS;
// Of a token: warps that rotate heads and attend to nothing.
constexpr int HELPING_WARPS = BLOCK_TOKENS > 1 ? 4 : 2;
constexpr int ATTENDING_REGISTERS = 216, HELPING_REGISTERS = 40;  // of a thread
static_assert(ATTENTION_WARPS == LAYER_WARPS / 2 && ATTENTION_WARPS % 4 == 0 &&
                  ATTENDING_REGISTERS + HELPING_REGISTERS <= 2 * 65536 / (32 * LAYER_WARPS),
              "half of the warps, whole warpgroups");
static_assert(ATTENTION_WARPS + BLOCK_TOKENS * HELPING_WARPS <= LAYER_WARPS, "a block's warps");
static_assert(BLOCK_SPLITS == 2 && DECODE_WARPS == SPLIT_TILES && ATTENTION_WARPS <= LAYER_WARPS, "a tile a warp");
static_assert(BLOCK_ROWS == 8, "columns of a B operand");

struct AttentionScratch {
    u8 tiles[ATTENTION_WARPS][2][TILE_BYTES];  // keys, values
    Exchange exchange[BLOCK_SPLITS];
    alignas(16) u8 new_rows[BLOCK_TOKENS][NEW_ROWS_BYTES];
    Slice second[DECODE_THREADS];  // the second split, as its warps have merged it
    alignas(8) float cosines[BLOCK_TOKENS][HEAD_DIM / 2], sines[BLOCK_TOKENS][HEAD_DIM / 2];
    float query_factors[BLOCK_TOKENS];
};

// A warp of such a block. HELPS: it attends to nothing.
template <bool HELPS>
class AttentionWarp {
    enum Barrier { COPY_BARRIER = 1, HEADS_BARRIER, TILES_BARRIER, SPLITS_BARRIER, NUM_BARRIERS = SPLITS_BARRIER };
    static constexpr int HEAD_WARPS = TOKEN_WARPS + HELPING_WARPS;
    static constexpr int WARP_HEADS = (BLOCK_ROWS + 2 + HEAD_WARPS - 1) / HEAD_WARPS;

    const DecodeLayersParams& p;
    const AttentionParams& attention;
    AttentionScratch& scratch;
    const int block_warp = threadIdx.x / 32, helper = block_warp - ATTENTION_WARPS, lane = threadIdx.x % 32;
    // A group of warps has a token, those that help come last.
    const int group = HELPS ? helper / HELPING_WARPS : block_warp / TOKEN_WARPS;
    const int warp = HELPS ? TOKEN_WARPS + helper % HELPING_WARPS : block_warp % TOKEN_WARPS;
    const int kv_head, token;
    const int split_number = warp / DECODE_WARPS;  // of those at once
    const HeadLane at;
    Item item = {};
    u32 keys, values;  // this warp's tiles in shared memory

   public:
    DEVICE AttentionWarp(const DecodeLayersParams& p, u8* shared)
        : p(p),
          attention(p.attention),
          scratch(*(AttentionScratch*)shared),
          kv_head((blockIdx.x - p.cut.attention_block) % p.attention.num_kv_heads),
          token((blockIdx.x - p.cut.attention_block) / p.attention.num_kv_heads * BLOCK_TOKENS + group),
          at(head_lane(p.rope)) {
        keys = shared_address(scratch.tiles[block_warp % ATTENTION_WARPS][0]), values = keys + TILE_BYTES;
    }

    DEVICE void run() {
        if (HELPS && helper >= BLOCK_TOKENS * HELPING_WARPS) return;
        wait_for_previous();
        i32 position = p.rows.positions[token], slot = p.rows.slots[token];
        if (goes_on(p, token)) {
            position++;
            const i32* table = attention.block_tables + (i64)token * attention.max_blocks;
            slot = kv_slot(table, position, attention.block_tokens);
        }
        if (position >= 0)
            attend_in_layers(position, slot);
        else if (!HELPS)
            clear_all();
        if (!HELPS && p.head.packed && kv_head == 0 && warp == 0) finish(position, slot);
    }

   private:
    DEVICE void attend_in_layers(i32 position, i32 slot) {
        item.sequence = token, item.num_rows = attention.group, item.num_keys = position + 1,
        item.end_tile = position / TILE_KEYS + 1;
        const i64 first_offset = offset_of(warp);
        const i64 new_offset =
            slot < 0 ? -1 : cache_offset(slot, kv_head, attention.num_kv_heads, attention.block_tokens);
        if (!HELPS && warp == 0) put_rotation(position);  // the barrier of the first layer's tiles comes after it
#pragma unroll 1
        for (int l = 0; l < p.cut.num_layers; l++) {
            const DecodeLayer& layer = p.layers[l];
            const LayerWords words(p, l);
            if constexpr (!HELPS) {
                copy(layer.cache, first_offset, warp);
                copy_wait<0>();
            }
            // Whoever has the new key and value puts them into their tile, whoever has copied that.
            sync_warps(group * NUM_BARRIERS + COPY_BARRIER, HEAD_WARPS);
            if constexpr (HELPS) {
                take_heads(words, layer.cache, new_offset);
            } else {
                TileOperands tile;
                take_tile(tile, layer.cache, warp);
                const Places places(*this, words);
                take_heads(words, layer.cache, new_offset);
                attend(tile, layer.cache, places);
            }
        }
    }

    DEVICE void put_rotation(i32 position) const {
        if (lane < p.angles.num_pairs) {
            const i32 length = p.rows.sequence_lengths[token] + goes_on(p, token);
            const float2 angle = angle_of(p.angles, position, length, lane);
            scratch.cosines[group][lane] = angle.x, scratch.sines[group][lane] = angle.y;
        }
        if (lane == 0) scratch.query_factors[group] = query_factor_of(p.angles, position);
    }
    DEVICE Rotation rotation() const {
        if (!at.rotated) return {};
        return {((const float2*)scratch.cosines[group])[lane], ((const float2*)scratch.sines[group])[lane]};
    }

    DEVICE void finish(i32 position, i32 slot) const {
        finish_row(p, token, position, slot, [&] {
            const LayerWords words(p, p.cut.num_layers - 1);
            for (int column = 4 * lane; column < p.cut.width; column += 128)
                make_empty(p.words + words.end(token, column));
        });
    }

    // What a row that is nobody's attends to. It waits for its heads all the same: a word for which nobody waits could
    // come after `HeadBlock::empty_words`.
    DEVICE void clear_all() const {
        const int num_words = attention.group * (HEAD_DIM / 2), num_head_words = num_words + 2 * (HEAD_DIM / 2);
#pragma unroll 1
        for (int l = 0; l < p.cut.num_layers; l++) {
            const LayerWords words(p, l);
            for (int i = warp * 32 + lane; i < num_head_words; i += TOKEN_WARPS * 32)
                await_word(p.words + words.qkv(token, head_word(i / (HEAD_DIM / 2), i % (HEAD_DIM / 2))));
            for (int i = warp * 32 + lane; i < num_words; i += TOKEN_WARPS * 32)
                publish(p.words + words.attended(token, kv_head * num_words + i), 0);
        }
    }

    DEVICE void copy(const LayerCacheParams& cache, i64 offset, i32 tile) const {
        copy_tile(keys, cache.keys, offset, tile, item.end_tile, item.num_keys - 1);
        copy_tile(values, cache.values, offset, tile, item.end_tile, item.num_keys - 1);
    }
    // Of the warps that have the token.
    DEVICE void sync(Barrier barrier) const { sync_warps(group * NUM_BARRIERS + barrier, TOKEN_WARPS); }
    DEVICE u8* new_row(int row) const { return scratch.new_rows[group] + row * QUERY_BYTES; }
    DEVICE i32 newest_tile() const { return (item.num_keys - 1) / TILE_KEYS; }
    DEVICE bool has_new(i32 tile) const { return tile == newest_tile() && is_in_place(); }
    DEVICE int new_group() const { return (item.num_keys - 1) % TILE_KEYS / KEY_GROUP; }
    // Whether the new key and value are put into their tile: whether that is one of the first round.
    DEVICE bool is_in_place() const { return newest_tile() < TOKEN_WARPS; }
    DEVICE Exchange& exchange() const { return scratch.exchange[block_warp / DECODE_WARPS]; }
    DEVICE i64 offset_of(i32 tile) const {
        return tile < item.end_tile ? group_offset(attention, item, kv_head, tile, lane % TILE_GROUPS) : 0;
    }

    // A word of this block's head `row`: its queries, then the new key and value.
    DEVICE int head_word(int row, int i) const {
        const i32 group = attention.group, num_heads = group * attention.num_kv_heads;
        const i32 head =
            row < group ? kv_head * group + row : num_heads + (row - group) * attention.num_kv_heads + kv_head;
        return head * (HEAD_DIM / 2) + i;
    }

    // Waits for this layer's heads, rotates them into `new_rows`, and stores the new key and value in the cache.
    DEVICE void take_heads(const LayerWords& words, const LayerCacheParams& cache, i64 new_offset) {
        const int num_rows = attention.group + 2;
        uint2 heads[WARP_HEADS];
        const u32 *first[WARP_HEADS], *second[WARP_HEADS];
        Rotation rotations[WARP_HEADS];  // loaded in each layer: registers are for keys and values
#pragma unroll
        for (int i = 0; i < WARP_HEADS; i++) {
            const bool is_query = warp + i * HEAD_WARPS < attention.group;
            // A warp that has none waits for the last one, so as not to come to the barrier a layer early.
            const int row = min(warp + i * HEAD_WARPS, num_rows - 1);
            first[i] = p.words + words.qkv(token, head_word(row, at.first));
            second[i] = p.words + words.qkv(token, head_word(row, at.second));
            rotations[i] = times(rotation(), is_query ? scratch.query_factors[group] : 1.0f);
        }
        await<WARP_HEADS>(
            [&](int i) {
                heads[i].x = at.valid ? load_word(first[i]) : 0;
                heads[i].y = at.valid ? load_word(second[i]) : 0;
            },
            [&](int i) { return heads[i].x != EMPTY && heads[i].y != EMPTY; });
        __syncwarp();
        // What rows these are, and where they go, is asked anew: kept for all layers, it would be in local memory.
        int own_warp = warp, newest = item.num_keys - 1;
        compute_now(own_warp), compute_now(newest);
#pragma unroll
        for (int i = 0; i < WARP_HEADS; i++) {
            const int row = own_warp + i * HEAD_WARPS;
            if (row >= num_rows) break;
            if (row < attention.group) {
                const uint2 query = rotate_head(heads[i], at, rotations[i], HeadNorm{});
                store_head((u16*)new_row(row), at, query);
                continue;
            }
            const bool is_key = row == attention.group;
            const uint2 cached = to_cache(is_key ? rotate_head(heads[i], at, rotations[i], HeadNorm{}) : heads[i]);
            if (newest / TILE_KEYS < TOKEN_WARPS) {
                u8* const rows = scratch.tiles[group * TOKEN_WARPS + newest / TILE_KEYS][is_key ? 0 : 1];
                const int key = newest % TILE_KEYS;
                store_cached(rows + key * ROW_BYTES, (u16*)(rows + TILE_KEYS * ROW_BYTES) + key, at, cached);
            } else {
                u8* const place = new_row(is_key ? NEW_KEY : NEW_VALUE);
                store_cached(place, (u16*)(place + HEAD_DIM), at, cached);
            }
            heads[i] = cached;
        }
        const int barrier = group * NUM_BARRIERS + HEADS_BARRIER;
        if (HELPS)
            arrive_warps(barrier, HEAD_WARPS);
        else
            sync_warps(barrier, HEAD_WARPS);
        // Nobody waits for the cache.
#pragma unroll
        for (int i = 0; i < WARP_HEADS; i++) {
            const int row = own_warp + i * HEAD_WARPS;
            if (row < attention.group || row >= num_rows || new_offset < 0) continue;
            store_cached(row == attention.group ? cache.keys : cache.values, new_offset, at, heads[i]);
        }
    }

    // Where this lane's part of a row of queries, of partial results and of a merged row is. Found before the queries
    // are there: each of the few instructions that it takes would delay all other blocks.
    struct Places {
        u32 queries, put_sums, put_values, sums, values, keys, new_values;
        u32* attended;

        DEVICE Places(const AttentionWarp& warp, const LayerWords& words) {
            const int lane = warp.lane, tile = warp.block_warp % DECODE_WARPS;
            queries = shared_address(warp.new_row(0)) + (lane & 7) * QUERY_BYTES + (lane >> 3) * 16;
            const Exchange& exchange = warp.exchange();
            put_sums = shared_address(&exchange.sums[tile][lane % 4 * 2]);
            put_values = shared_address(&exchange.o[tile][lane % 4 * 2][lane / 4]);
            sums = shared_address(&exchange.sums[0][slice_row()]);
            values = shared_address(&exchange.o[0][slice_row()][slice_column(0)]);
            const int row = warp.kv_head * warp.attention.group + slice_row();
            attended = warp.p.words + words.attended(warp.token, row * (HEAD_DIM / 2) + slice_column(0) / 2);
            keys = TileOperands::key_lane(warp.keys), new_values = TileOperands::value_lane(warp.values);
            compute_now(keys), compute_now(new_values);
            compute_now(queries), compute_now(put_sums), compute_now(put_values), compute_now(sums);
            compute_now(values), compute_now(attended);
        }
    };
    static_assert(THREAD_QUADS == 1 && HEAD_DIM / 4 == ROW_THREADS, "a thread has four elements of a row");

    DEVICE void load_rows(SwappedRows& rows, const Places& places) const {
#pragma unroll
        for (int k = 0; k < CHUNKS; k += 2) {
            u32 b[4];
            load_matrices(b, places.queries + k * 32);
            rows.queries[k][0] = b[0], rows.queries[k][1] = b[1];
            rows.queries[k + 1][0] = b[2], rows.queries[k + 1][1] = b[3];
        }
        static_assert(CHUNKS % 2 == 0, "two at a time");
        find_code_bias(rows);
        rows.all_lowest = 0, rows.all_highest = item.num_keys - 1;
        see(rows, 0, rows.all_highest, item.num_rows);
    }

    // Waits for this warp's tile of a round, but for the newest key and value in the first round, and begins to copy
    // the one of the next round once this one is in registers.
    DEVICE void take_tile(TileOperands& operands, const LayerCacheParams& cache, i32 tile) const {
        if (tile >= item.end_tile) {
            operands.clear();
            return;
        }
        const i32 next = tile + TOKEN_WARPS;
        copy_wait<0>();
        if (tile == newest_tile() && !is_in_place()) {
            NewRows::complete(scratch.tiles[block_warp][0], item, new_row(NEW_KEY));
            NewRows::complete(scratch.tiles[block_warp][1], item, new_row(NEW_VALUE));
        }
        __syncwarp();
        if constexpr (!IS_Q8) {
            operands.load(keys, values, item.num_keys - tile * TILE_KEYS);
            __syncwarp();
            copy(cache, offset_of(next), next);
        }
    }

    // Leaves the partial result of this warp's tile of a round for others.
    DEVICE void attend_to_tile(const SwappedRows& rows, TileOperands& operands, const LayerCacheParams& cache,
                               const Places& places, i32 tile) const {
        SwappedWeights weights;
        SwappedPartial partial;
        if constexpr (IS_Q8) {
            const i32 next = tile + TOKEN_WARPS;
            score_tile(weights, rows, keys, tile * TILE_KEYS, attention, 1);
            weigh_tile(partial, weights, values);
            __syncwarp();
            copy(cache, offset_of(next), next);
        } else {
            operands.score(rows);
            if (has_new(tile)) operands.load_values_of(new_group(), places.new_values);
            weigh_scores(weights, operands.scores, attention);
            operands.weigh(partial, weights);
        }
        put(partial, places);
    }

    // Also of rows that there are not.
    DEVICE void put(const SwappedPartial& partial, const Places& places) const {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const u32 sums[2] = {__float_as_uint(partial.m[e]), __float_as_uint(partial.l[e])};
            if (lane < 4) store_words<2>(places.put_sums + e * 8, sums);
#pragma unroll
            for (int d = 0; d < CHUNKS; d++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    store_float(places.put_values + e * (EXCHANGE_ROW * 4) + (16 * d + 8 * half) * 4,
                                partial.o[d][2 * half + e]);
        }
    }

    // Merges the tiles of a split, the first of which is `first`. Tiles that there are not change no bit.
    DEVICE void merge_tiles(Slice& split, const Places& places, i32 first) const {
        Slice tiles[DECODE_WARPS];  // fetched together
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) {
            clear(tiles[w]);
            if (first + w >= item.end_tile) continue;
            u32 sums[2], o[4];
            load_words<2>(sums, places.sums + w * (int)sizeof(Exchange::sums[0]));
            load_words<4>(o, places.values + w * (int)sizeof(Exchange::o[0]));
            tiles[w].m = __uint_as_float(sums[0]), tiles[w].l = __uint_as_float(sums[1]);
            tiles[w].o[0] = {__uint_as_float(o[0]), __uint_as_float(o[1]), __uint_as_float(o[2]),
                             __uint_as_float(o[3])};
        }
        begin(split, tiles[0]);
#pragma unroll
        for (int w = 1; w < DECODE_WARPS; w++) merge(split, tiles[w]);
    }

    DEVICE void attend(TileOperands& operands, const LayerCacheParams& cache, const Places& places) {
        SwappedRows rows;
        if (!IS_Q8 && has_new(warp)) operands.load_keys_of(new_group(), places.keys);
        load_rows(rows, places);
        const bool merges = slice_row() < item.num_rows;
        Slice whole = {};
#pragma unroll 1
        for (i32 round = 0;; round += TOKEN_WARPS) {
            if (round + warp < item.end_tile) attend_to_tile(rows, operands, cache, places, round + warp);
            sync(TILES_BARRIER);
            Slice split = {};
            const i32 first = round + split_number * DECODE_WARPS;
            if (merges && first < item.end_tile) merge_tiles(split, places, first);
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
            if (round + TOKEN_WARPS >= item.end_tile) break;
            take_tile(operands, cache, round + TOKEN_WARPS + warp);
        }
        if (split_number != 0 || !merges) return;
        const float factor = final_factor(whole.l);
        const float4 o = whole.o[0];
        publish(places.attended, pack_half2(o.x * factor, o.y * factor), pack_half2(o.z * factor, o.w * factor));
    }
};

#if HAS_WGMMA  // on other cards warpgroups keep the registers that they begin with
// Warpgroups that attend to nothing give their registers to those that do.
DEVICE void run_attention(const DecodeLayersParams& p, u8* shared) {
    if (threadIdx.x < 32 * ATTENTION_WARPS) {
        take_registers<ATTENDING_REGISTERS>();
        AttentionWarp<false>(p, shared).run();
    } else {
        leave_registers<HELPING_REGISTERS>();
        AttentionWarp<true>(p, shared).run();
    }
}
#endif
