// Attention in a block of streamed_layers, which has a KV head. Its first warps have a tile of keys each, of so many at
// a time; keys and values of the tokens before come to the ring's place once the layer before is done.
#pragma once
#include "streamed_layers.cuh"

struct AttentionScratch {
    u8 tiles[ROUND_TILES - 1][2][TILE_BYTES];  // keys, values
    Exchange exchange[(ROUND_TILES + DECODE_WARPS - 1) / DECODE_WARPS];
    alignas(16) u8 new_rows[NEW_ROWS_BYTES];
    // The last tile, which comes once Q, K and V are multiplied: until then weights of these are here.
    alignas(16) u8 last_tile[2][TILE_BYTES];
};

constexpr int MERGED_TILES = 3;
static_assert(ROUND_TILES % MERGED_TILES == 0, "all of a round's");

class StreamedAttention {
    const StreamedLayersParams& p;
    const AttentionParams& attention;
    BlockScratch& block;
    AttentionScratch& scratch;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int kv_head;
    const HeadLane at;
    const i32 position;
    Item item = {};

   public:
    // Made anew wherever it is wanted: registers are for weights.
    DEVICE StreamedAttention(const StreamedLayersParams& p, BlockScratch& block)
        : p(p),
          attention(p.attention),
          block(block),
          scratch(*(AttentionScratch*)block.branch),
          kv_head(blockIdx.x - p.cut.attention_block),
          at(head_lane(p.rope)),
          position(block.position) {
        item.num_rows = attention.group, item.num_keys = position + 1;
        item.end_tile = position < 0 ? 0 : position / TILE_KEYS + 1;
    }
    // The row, for all others of these.
    DEVICE static void begin(const StreamedLayersParams& p, BlockScratch& block) {
        i32 position = p.rows.positions[0], slot = p.rows.slots[0];
        const bool is_next = goes_on(p, 0);
        if (is_next) slot = kv_slot(p.attention.block_tables, ++position, p.attention.block_tokens);
        for (int pair = threadIdx.x; pair < p.angles.num_pairs; pair += blockDim.x) {
            const float2 angle = angle_of(p.angles, position, p.rows.sequence_lengths[0] + is_next, pair);
            block.cosines[pair] = angle.x, block.sines[pair] = angle.y;
        }
        if (threadIdx.x == 0) {
            block.position = position, block.slot = slot;
            block.query_factor = query_factor_of(p.angles, position);
        }
        __syncthreads();
    }
    // Where a warp's weights of Q, K and V come.
    DEVICE static u32 weights_place(const BlockScratch& block) {
        return shared_address(((const AttentionScratch*)block.branch)->last_tile) + threadIdx.x / 32 * SLOT_BYTES;
    }
    // Once the ring is read.
    DEVICE void copy_first(int layer) const {
        if (warp < ROUND_TILES - 1) copy(p.layers[layer].cache, warp);
    }
    // Once Q, K and V are multiplied. Afterwards the ring's place is free.
    DEVICE void run(int layer) {
        const StreamedWords words(p, layer);
        const LayerCacheParams& cache = p.layers[layer].cache;
        if (warp == ROUND_TILES - 1) copy(cache, warp);
        if (warp >= ROUND_TILES) take_heads(words, cache);
        sync_block();
        const bool merges = threadIdx.x < DECODE_THREADS && slice_row() < item.num_rows;
        Slice whole, split;
        clear(whole), clear(split);
#pragma unroll 1
        for (i32 round = 0; round < item.end_tile; round += ROUND_TILES) {
            if (warp < ROUND_TILES && round + warp < item.end_tile) attend_to_tile(cache, round + warp);
            sync_block();
            if (merges)
#pragma unroll 1
                for (int first = 0; first < ROUND_TILES && round + first < item.end_tile; first += MERGED_TILES) {
                    Slice tiles[MERGED_TILES];  // fetched together; merging nothing changes no bit
#pragma unroll
                    for (int i = 0; i < MERGED_TILES; i++) {
                        const int w = first + i;
                        clear(tiles[i]);
                        if (round + w < item.end_tile)
                            get(tiles[i], scratch.exchange[w / DECODE_WARPS], w % DECODE_WARPS);
                    }
#pragma unroll
                    for (int i = 0; i < MERGED_TILES; i++) {
                        if (round + first + i && (round + first + i) % SPLIT_TILES == 0)
                            merge(whole, split), clear(split);
                        merge(split, tiles[i]);
                    }
                }
            if (round + ROUND_TILES < item.end_tile) sync_block();
        }
        if (merges) {
            merge(whole, split);
            const float factor = item.end_tile ? final_factor(whole.l) : 0.0f;  // a row that is nobody's gets zeros
            const int row = kv_head * attention.group + slice_row();
#pragma unroll
            for (int q = 0; q < THREAD_QUADS; q++) {
                const float4 o = whole.o[q];
                if (slice_column(q) < HEAD_DIM)
                    publish(words.attended(row * (HEAD_DIM / 2) + slice_column(q) / 2),
                            pack_half2(o.x * factor, o.y * factor), pack_half2(o.z * factor, o.w * factor));
            }
        }
        copy_wait<0>();
        sync_block();
    }
    // Once all logits are there.
    DEVICE void finish() const {
        finish_row(p, 0, position, block.slot, [&] {
            u32* const end = StreamedWords(p, p.cut.num_layers - 1).end(0);
            for (int column = 4 * lane; column < p.cut.width; column += 128) make_empty(end + column);
        });
    }

   private:
    DEVICE u8* tile_place() const { return warp < ROUND_TILES - 1 ? scratch.tiles[warp][0] : scratch.last_tile[0]; }
    DEVICE u32 keys() const { return shared_address(tile_place()); }
    DEVICE void copy(const LayerCacheParams& cache, i32 tile) const {
        const i64 offset = tile < item.end_tile ? group_offset(attention, item, kv_head, tile, lane % TILE_GROUPS) : 0;
        copy_tile(keys(), cache.keys, offset, tile, item.end_tile, item.num_keys - 1);
        copy_tile(keys() + TILE_BYTES, cache.values, offset, tile, item.end_tile, item.num_keys - 1);
    }

    // Leaves the partial result of this warp's tile, and begins to copy the one of the next round.
    DEVICE void attend_to_tile(const LayerCacheParams& cache, i32 tile) const {
        copy_wait<0>();
        if (tile == (item.num_keys - 1) / TILE_KEYS) {
            NewRows::complete(tile_place(), item, scratch.new_rows + NEW_KEY * QUERY_BYTES);
            NewRows::complete(tile_place() + TILE_BYTES, item, scratch.new_rows + NEW_VALUE * QUERY_BYTES);
        }
        __syncwarp();
        SwappedRows rows;
        load_queries(rows, shared_address(scratch.new_rows));
        find_code_bias(rows);
        rows.all_lowest = 0, rows.all_highest = item.num_keys - 1;
        see(rows, 0, rows.all_highest, item.num_rows);
        SwappedWeights weights;
        SwappedPartial partial;
        score_tile(weights, rows, keys(), tile * TILE_KEYS, attention, 1);
        weigh_tile(partial, weights, keys() + TILE_BYTES);
        put(scratch.exchange[warp / DECODE_WARPS], partial, item.num_rows);
        __syncwarp();
        copy(cache, tile + ROUND_TILES);
    }

    // A word of this block's head `row`: its queries, then the new key and value.
    DEVICE int head_word(int row) const {
        const i32 group = attention.group, num_heads = group * attention.num_kv_heads;
        const i32 head =
            row < group ? kv_head * group + row : num_heads + (row - group) * attention.num_kv_heads + kv_head;
        return head * (HEAD_DIM / 2);
    }
    // Waits for the layer's heads, rotates them into `new_rows`, and stores the new key and value in the cache.
    DEVICE void take_heads(const StreamedWords& words, const LayerCacheParams& cache) const {
#pragma unroll 1
        for (int row = warp - ROUND_TILES; row < attention.group + 2; row += STREAM_WARPS - ROUND_TILES) {
            const bool is_query = row < attention.group, is_key = row == attention.group;
            const u32* from = words.qkv(head_word(row));
            uint2 head = {0, 0};
            await<1>(
                [&](int) {
                    if (at.valid) head.x = load_word(from + at.first), head.y = load_word(from + at.second);
                },
                [&](int) { return head.x != EMPTY && head.y != EMPTY; });
            __syncwarp();
            Rotation by = {};
            if (at.rotated) by = {((const float2*)block.cosines)[lane], ((const float2*)block.sines)[lane]};
            if (is_query) by = times(by, block.query_factor);
            const uint2 rotated = is_query || is_key ? rotate_head(head, at, by, HeadNorm{}) : head;
            if (is_query) {
                store_head((u16*)(scratch.new_rows + row * QUERY_BYTES), at, rotated);
                continue;
            }
            const uint2 cached = to_cache(rotated);
            u8* const place = scratch.new_rows + (is_key ? NEW_KEY : NEW_VALUE) * QUERY_BYTES;
            store_cached(place, (u16*)(place + HEAD_DIM), at, cached);
            if (block.slot < 0) continue;
            const i64 offset = cache_offset(block.slot, kv_head, attention.num_kv_heads, attention.block_tokens);
            store_cached(is_key ? cache.keys : cache.values, offset, at, cached);
        }
    }
};
