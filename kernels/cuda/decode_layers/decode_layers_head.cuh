// The output head: a warp of a block has a tile at a time, and a ring of units, which take the place of the layers'
// weights.
#pragma once
#include "decode_layers_block.cuh"

constexpr int HEAD_UNIT = Layout<Q8_0>::unit_bytes;

class HeadBlock : public LayerBlock {
   protected:
    using LayerBlock::LayerBlock;

    DEVICE static int head_tile(int warp, int round, int num_blocks) {
        return block() + num_blocks * (warp + FEED_WARP * round);
    }
    DEVICE u32 head_slot(int warp, int slot) const {
        return shared_address(&scratch) - p.cut.scratch_at + (warp * HEAD_UNITS + slot) * HEAD_UNIT;
    }
    DEVICE u32 head_barrier(int warp, int slot) const {
        return head_slot(FEED_WARP, 0) + (warp * HEAD_UNITS + slot) * 8;
    }
    DEVICE void copy_head_unit(int warp, int slot, int tile, int chunk) const {
        const u32 barrier = head_barrier(warp, slot);
        const u8* from = unit_address<Q8_0>(p.head.packed, tile, chunk, p.head.num_chunks);
        barrier_arrive_expecting(barrier, HEAD_UNIT);
        copy_bulk_once(head_slot(warp, slot), from, HEAD_UNIT, barrier);
    }
    // The first units of all warps, once the last layer's weights are unpacked.
    DEVICE void feed_head() const {
        const int phase = (p.cut.num_layers - 1) & 1;
        if (has_qkv() || has_output())
            barrier_wait(tile_buffer().empty, tile_fill(p.cut.num_layers - 1, has_output()) & 1);
        if (num_gate_tiles() > 0) barrier_wait(gate_buffer().empty, phase);
        if (has_down()) barrier_wait(down_buffer().empty, phase);
        for (int i = lane(); i < FEED_WARP * HEAD_UNITS; i += 32) barrier_init(head_barrier(0, i), 1);
        publish_barriers();
        __syncwarp();
        arrive_warps(HEAD_BARRIER, GATE_WARPS + 1);
#pragma unroll 1
        for (int i = lane(); i < FEED_WARP * HEAD_UNITS; i += 32) {
            const int slot = i / FEED_WARP, warp = i - slot * FEED_WARP;
            const int tile = head_tile(warp, 0, p.cut.attention_block);
            if (tile < p.head.num_tiles) copy_head_unit(warp, slot, tile, slot);
        }
        empty_words();
    }
    // The block's share of all words but those that come out of the last layer. Once these are all there, nobody writes
    // or reads the others any more: for each of those somebody has waited, and made of it what these are made of.
    DEVICE void empty_words() const {
        sync_warps(READ_BARRIER, 2);
        const int num_quads = LayerWords(p, p.cut.num_layers - 1).end(0, 0) / 4;
#pragma unroll 1
        for (int i = block() * 32 + lane(); i < num_quads; i += p.cut.attention_block * 32) make_empty(p.words + 4 * i);
    }
    DEVICE void multiply_head() {
        if (warp() < num_norm_warps()) norm(norm_weights(p.head.norm), layer_x(p.cut.num_layers), false, p.head.rows);
        if (warp() == 0) arrive_warps(READ_BARRIER, 2);  // the others have been at a barrier of the norm
        const u32 x = x_address(0);
        sync_warps(HEAD_BARRIER, GATE_WARPS + 1);
        const int num_chunks = p.head.num_chunks, num_blocks = p.cut.attention_block;
        int slot = 0, phase = 0, next_tile = head_tile(warp(), 0, num_blocks), next_chunk = HEAD_UNITS;
        u64 ranks[LANE_TOKENS];
#pragma unroll
        for (int i = 0; i < LANE_TOKENS; i++) ranks[i] = NO_RANK;
#pragma unroll 1
        for (int tile = next_tile; tile < p.head.num_tiles; tile += num_blocks * FEED_WARP) {
            float acc[4] = {};
#pragma unroll 2
            for (int chunk = 0; chunk < num_chunks; chunk++) {
                barrier_wait(head_barrier(warp(), slot), phase);
                Raw<Q8_0> raw;
                raw.load_shared(head_slot(warp(), slot), 0, lane());
                __syncwarp();
                if (next_chunk >= num_chunks) next_chunk -= num_chunks, next_tile += num_blocks * FEED_WARP;
                if (lane() == 0 && next_tile < p.head.num_tiles) copy_head_unit(warp(), slot, next_tile, next_chunk);
                next_chunk++;
                if (++slot == HEAD_UNITS) slot = 0, phase ^= 1;
                const Scales<Q8_0> scales(raw, RowBase{});
                u32 b[2][4];
                load_matrices(b[0], x + chunk * 128);
                load_matrices(b[1], x + chunk * 128 + 64);
#pragma unroll
                for (int s = 0; s < 4; s++) {
                    u32 a[4];
                    fragment_of<Q8_0>(raw, scales, s, a);
                    mma_16x8x16(acc, a, b[s >> 1][2 * (s & 1)], b[s >> 1][2 * (s & 1) + 1]);
                }
            }
            for_sums(acc, [&](int token, int row, float sum) {
                const int at = tile * 16 + row;
                if (at >= p.head.num_rows) return;
                const float logit = __fadd_rn(sum, 0.0f);
                p.head.logits[(i64)token * p.head.num_rows + at] = logit;
                u64& rank = ranks[token % LANE_TOKENS];
                rank = larger(rank, rank_of_logit(logit, at));
            });
        }
        publish_ranks(ranks);
    }

   private:
    static constexpr int LANE_TOKENS = TOKENS > 1 ? 2 : 1;  // of which a lane has sums

    // The rank of the block's largest logit of each token.
    DEVICE void publish_ranks(u64 (&ranks)[LANE_TOKENS]) {
#pragma unroll
        for (int i = 0; i < LANE_TOKENS; i++) {
            const int token = lane() % 4 * 2 + i;
#pragma unroll
            for (int distance = 16; distance > 2; distance >>= 1)
                ranks[i] = larger(ranks[i], __shfl_xor_sync(ALL_LANES, ranks[i], distance));
            if (lane() < 4 && token < TOKENS) scratch.ranks[token][warp()] = ranks[i];
        }
        sync_warps(RANK_BARRIER, GATE_WARPS);
        if (warp() >= TOKENS) return;
        const u64 rank = warp_largest(lane() < GATE_WARPS ? scratch.ranks[warp()][lane()] : NO_RANK);
        if (lane() == 0) publish(rank_place(p, warp(), block()), rank_bits(rank), rank_id(rank));
    }
};
