// Blocks with rows of the products. Block b has tile b of the output projection, or one of Q, K and V, or both; some
// tiles of gates and up projections; half of tile b / 2 of the down projection; and tiles of the output head. A warp
// has a partition of a tile, or two of half a tile. Tokens are columns of the tensor core's B operand, so two take
// hardly longer than one.
#pragma once
#include "../repack/packed_element.cuh"
#include "decode_layers_head.cuh"

class ProductBlock : HeadBlock {
   public:
    using HeadBlock::HeadBlock;

    DEVICE void run() {
        if (warp() == FEED_WARP) {
            feed();
            return;
        }
        wait_for_previous();
        if (has_down() && warp() == 0) publish_embeddings();
        float4 attention_norm = norm_weights(p.layers[0].attention_norm);
#pragma unroll 1
        for (int layer = 0; layer < p.cut.num_layers; layer++) {
            const float4 ffn_norm = norm_weights(p.layers[layer].ffn_norm);
            if (has_qkv()) multiply_qkv(layer, attention_norm);
            if (!UNPACKS_LATE && has_down()) unpack_down(layer);
            if (num_gate_tiles() > 0) multiply_gate(layer, ffn_norm);
            if (layer + 1 < p.cut.num_layers) attention_norm = norm_weights(p.layers[layer + 1].attention_norm);
            if (has_down()) multiply_down(layer);
        }
        if (p.head.packed) multiply_head();
    }

   private:
    // The columns that are the block's rows of the down projection.
    DEVICE void publish_embeddings() const {
        const LayersEmbedding& from = p.embedding;
        const int column = block() * 8 + lane() % 8;
#pragma unroll
        for (int token = lane() / 8; token < TOKENS; token += 4) {
            const int row = table_row(p, token);
            const float element = from.format == Q5_0 ? packed_element<Q5_0>(from.packed, row, column, from.num_units)
                                                      : packed_element<Q8_0>(from.packed, row, column, from.num_units);
            publish(p.words + LayerWords(p, -1).end(token, column), __float_as_uint(__fmul_rn(element, from.scale)));
        }
        __syncwarp();
    }
    DEVICE void fill_gates(int layer) const {
        if (num_gate_tiles() <= 0) return;
        if (GATES_AFTER_MIDDLE && layer) barrier_wait(shared_address(&scratch.stream_barrier), (layer - 1) & 1);
        if (GATES_AFTER_X && layer) barrier_wait(shared_address(&scratch.stream_barrier), layer & 1);
        gate_buffer().fill(p.layers[layer].gate_up, p.layers[layer].gate_up_format, p.gate_up.num_chunks,
                           first_gate_tile(), num_gate_tiles(), layer);
    }
    DEVICE void fill_down(int l) const {
        const DecodeLayer& layer = p.layers[l];
        if (has_down()) down_buffer().fill(layer.down, layer.down_format, p.down.num_chunks, block() / 2, 1, l);
    }
    // In the order in which buffers become empty.
    DEVICE void feed() const {
#pragma unroll 1
        for (int l = 0; l < p.cut.num_layers; l++) {
            const DecodeLayer& layer = p.layers[l];
            // What the norm and Q, K and V would else wait for longer than for x.
            if (has_qkv() && lane() * 32 < p.cut.width) prefetch(layer.attention_norm + lane() * 32);
            if (has_qkv() && layer.qkv_bias && lane() == 0) prefetch(layer.qkv_bias + qkv_tile() * 16);
            if (has_qkv())
                tile_buffer().fill(layer.qkv, layer.qkv_format, p.qkv.num_chunks, qkv_tile(), 1, tile_fill(l, false));
            if (!UNPACKS_LATE || l == 0) fill_down(l);
            if (TOKENS == 1) fill_gates(l);
            if (has_output())
                tile_buffer().fill(layer.output, layer.output_format, p.output.num_chunks, block(), 1,
                                   tile_fill(l, true));
            if (TOKENS > 1) fill_gates(l);
            if (UNPACKS_LATE && l + 1 < p.cut.num_layers) fill_down(l + 1);
        }
        if (p.head.packed) feed_head();
    }

    DEVICE void multiply_qkv(int layer, float4 norm_weights) {
        const DecodeLayer& weights = p.layers[layer];
        const int num_warps = p.qkv.num_partitions, partition = tile_partition(p.qkv);
        const int num_x_warps = min(num_norm_warps() + num_warps, FEED_WARP);  // those that norm or multiply
        if (partition < 0) {
            if (warp() >= num_norm_warps()) return;
            norm(norm_weights, layer_x(layer), false);
            arrive_warps(QKV_X_BARRIER, num_x_warps);
            return;
        }
        const int first = p.qkv.first_chunk(partition), count = p.qkv.first_chunk(partition + 1) - first;
        float bias = 0.0f;
        if (partition == 0 && weights.qkv_bias) bias = weights.qkv_bias[qkv_tile() * 16 + lane() % 16];
        Fragments<TILE_CHUNKS> fragments;
        tile_buffer().wait(tile_fill(layer, false));
        fragments.unpack(weights.qkv_format, tile_buffer().units, 0, 0, first, count);
        tile_buffer().release();
        u32 to = LayerWords(p, layer).qkv(first_token_of_lane(), qkv_tile() * 8 + lane() % 16 / 2);
        u32 x = x_address(first);
        compute_now(to), compute_now(x);
        if (NORM_GROUPS > 1 && warp() < num_norm_warps()) norm(norm_weights, layer_x(layer), false);
        sync_warps(QKV_X_BARRIER, num_x_warps);
        float acc[4] = {};
        fragments.multiply(acc, x, count);
        put_sums(scratch.tile_sums, partition, acc);
        u32* place = place_of(to);
        if (!finishes(TILE_BARRIER, num_warps, partition == 0)) return;
        for_rows([&](int pass, int token, int row, bool is_one) {
            const float sum = sum_in_order<2>(scratch.tile_sums[token][row]);
            const u32 word = word_of_halves(__fadd_rn(sum, bias));
            if (is_one && row % 2 == 0) publish(place + 2 * pass * p.places.qkv_words, word);
        });
    }

    // A warp waits for what attention gives, for `count` chunks from chunk `first` on.
    DEVICE void take_attended(int layer, int first, int count) {
        if (lane() < count * 8) {
            const u32* places[TOKENS];
            uint4 quads[TOKENS];
#pragma unroll
            for (int token = 0; token < TOKENS; token++)
                places[token] = p.words + LayerWords(p, layer).attended(token, first * 32 + lane() * 4);
            await_quads(quads, places);
#pragma unroll
            for (int token = 0; token < TOKENS; token++)
                *(uint4*)(scratch.x(token) + first * 64 + lane() * 8) = quads[token];
        }
        __syncwarp();
    }

    // The warps call it that have a partition of output.
    DEVICE void multiply_output(int layer, int partition) {
        const DecodeLayer& weights = p.layers[layer];
        const int first = p.output.first_chunk(partition), count = p.output.first_chunk(partition + 1) - first;
        tile_buffer().wait(tile_fill(layer, true));
        float residuals[PASSES] = {};
        if (partition == 0)
            for_rows([&](int pass, int token, int row, bool) {
                const u32* x = p.words + LayerWords(p, layer - 1).end(token, block() * 16 + row);
                residuals[pass] = __uint_as_float(await_word(x));
            });
        if (GATES_AFTER_X && partition == 0 && !has_qkv()) {
            __syncwarp();
            if (lane() == 0) barrier_arrive(shared_address(&scratch.stream_barrier));
        }
        u32 to = LayerWords(p, layer).middle(first_token_of_lane(), block() * 16 + lane() % 16), x = x_address(first);
        compute_now(to), compute_now(x);
        Fragments<TILE_CHUNKS> fragments;
        fragments.unpack(weights.output_format, tile_buffer().units, 0, 0, first, count);
        tile_buffer().release();
        take_attended(layer, first, count);
        float acc[4] = {};
        fragments.multiply(acc, x, count);
        put_sums(scratch.tile_sums, partition, acc);
        u32* place = place_of(to);
        if (!finishes(TILE_BARRIER, p.output.num_partitions, partition == 0)) return;
        for_rows([&](int pass, int token, int row, bool is_one) {
            const float sum = __fadd_rn(sum_in_order<2>(scratch.tile_sums[token][row]), 0.0f);
            const float y = fmaf(sum, 1.0f, residuals[pass]);
            if (is_one) publish(place + 2 * pass * p.places.middle_words, __float_as_uint(y));
        });
    }

    DEVICE void multiply_gate(int layer, float4 norm_weights) {
        const DecodeLayer& weights = p.layers[layer];
        const int num_partitions = p.gate_up.num_partitions;
        if (warp() >= GATE_WARPS) return;
        const int tile = warp() / num_partitions, partition = warp() - tile * num_partitions;
        const int first = p.gate_up.first_chunk(partition), count = p.gate_up.first_chunk(partition + 1) - first;
        const bool multiplies = tile < num_gate_tiles();
        // The warps that have output's partitions unpack gates after it, while others wait for its rows and norm them.
        if (has_output() && tile_partition(p.output) >= 0) multiply_output(layer, tile_partition(p.output));
        Fragments<GATE_CHUNKS> fragments;
        gate_buffer().wait(layer);
        fragments.unpack(weights.gate_up_format, gate_buffer().units, tile, p.gate_up.num_chunks, first,
                         multiplies ? count : 0);
        gate_buffer().release();
        u32 to = NOWHERE, x = x_address(first);
        if (warp() < num_gate_tiles())
            to = LayerWords(p, layer).activated(first_token_of_lane(),
                                                (first_gate_tile() + warp()) * 4 + lane() % 16 / 2);
        compute_now(to), compute_now(x);
        if (warp() < num_norm_warps()) norm(norm_weights, p.words + LayerWords(p, layer).middle(0, 0), true);
        sync_warps(GATE_X_BARRIER, GATE_WARPS);
        if (multiplies) {
            float acc[4] = {};
            fragments.multiply(acc, x, count);
            put_sums(scratch.gate_sums[tile], partition, acc);
        }
        // Those that go on to write where x is wait for all that read it.
        const bool waits = to != NOWHERE || (SHARES_X && warp() < num_down_warps());
        u32* place = place_of(to);
        if (!finishes(GATE_BARRIER, GATE_WARPS, waits) || to == NOWHERE) return;
        for_rows([&](int pass, int token, int row, bool is_one) {
            const float y = __fadd_rn(sum_in_order<1>(scratch.gate_sums[warp()][token][row]), 0.0f);
            const float up = __shfl_down_sync(ALL_LANES, y, 8);
            const u32 word = word_of_halves(swiglu(y, up));
            if (is_one && row < 8 && row % 2 == 0) publish(place + 2 * pass * p.places.activated_words, word);
        });
    }

    // Where the fragments of two partitions are, the first of which is `partition`.
    DEVICE u32 down_fragments(int partition) const {
        return shared_address(&scratch) - p.cut.scratch_at + p.cut.fragments_at + partition / 2 * (DOWN_CHUNKS * 2048);
    }
    // Some warps unpack the down projection's weights to shared memory, while others norm, multiply or wait.
    DEVICE void unpack_down(int layer) {
        if (warp() >= UNPACK_WARPS) return;
        const int format = p.layers[layer].down_format, count = p.down.first_chunk(1);
        down_buffer().wait(layer);
        if (layer) sync_warps(FREE_BARRIER, num_feeding_warps());
#pragma unroll 1
        for (int i = warp(); i < num_down_warps() * count; i += UNPACK_WARPS) {
            const int pair = i / count, chunk = i - pair * count;
            const int first = 2 * pair * count + chunk;
            const int second = 2 * pair + 1 < p.down.num_partitions ? first + count : first;
            Fragments<1> fragments;
            if (block() % 2)
                fragments.unpack_halves<1>(format, down_buffer().units, first, second);
            else
                fragments.unpack_halves<0>(format, down_buffer().units, first, second);
            fragments.put(down_fragments(2 * pair) + chunk * 2048);
        }
        down_buffer().release();
        if (warp() >= num_down_warps()) arrive_warps(READY_BARRIER, num_feeding_warps());
    }

    DEVICE void multiply_down(int layer) {
        const DecodeLayer& weights = p.layers[layer];
        const int num_warps = num_down_warps();
        if (warp() >= num_warps) return;
        const int first = p.down.first_chunk(2 * warp()), count = p.down.first_chunk(2 * warp() + 1) - first;
        const bool has_second = 2 * warp() + 1 < p.down.num_partitions;
        const int second = has_second ? first + count : first;
        // Of the product's columns two are of each token: one of the first partition's x, one of the second's. Of
        // either's rows that is what counts.
        u32 x = shared_address(scratch.activated(warp(), lane() % (2 * DOWN_TOKENS))) + (lane() >> 3) * 16;
        // Where a row's word goes: with more tokens there is no register for it until they are multiplied.
        static_assert(TOKENS == DOWN_TOKENS || END_SPREAD == 1, "rows as far apart in the stream");
        const auto place_number = [&]() -> u32 {
            const int token = TOKENS > 1 ? lane() / 8 % DOWN_TOKENS : 0, row = block() * 8 + lane() % 8;
            const bool is_stream = layer + 1 == p.cut.num_layers && !p.head.packed;
            return is_stream ? p.places.stream_at + token * p.cut.width + row : LayerWords(p, layer).end(token, row);
        };
        u32 to = TOKENS > 2 ? 0 : place_number();
        compute_now(to), compute_now(x);
        Fragments<DOWN_CHUNKS> fragments;
        if constexpr (UNPACKS_LATE) {
            down_buffer().wait(layer);
            if (block() % 2)
                fragments.template unpack_halves<1>(weights.down_format, down_buffer().units, first, second);
            else
                fragments.template unpack_halves<0>(weights.down_format, down_buffer().units, first, second);
            down_buffer().release();
        } else {
            sync_warps(READY_BARRIER, num_feeding_warps());
            fragments.take(down_fragments(2 * warp()), count);
            if (layer + 1 < p.cut.num_layers && warp() >= UNPACK_WARPS) arrive_warps(FREE_BARRIER, num_feeding_warps());
        }
#pragma unroll 1
        for (int first_token = 0; first_token < TOKENS; first_token += DOWN_TOKENS) {
            uint4 quads[2 * DOWN_TOKENS] = {};
            if (lane() < count * 8) {
                const u32* places[2 * DOWN_TOKENS];
#pragma unroll
                for (int i = 0; i < 2 * DOWN_TOKENS; i++)
                    places[i] = p.words + LayerWords(p, layer).activated(first_token + i / 2,
                                                                         (i % 2 ? second : first) * 32 + lane() * 4);
                await_quads(quads, places);
            }
            __syncwarp();
            // What else depends on these is found anew: kept from before the wait, it would be in local memory.
            int own_warp = warp(), own_lane = lane();
            if (TOKENS < 4) compute_now(own_lane);  // with more tokens that is slower
            float acc[4] = {};
#pragma unroll
            for (int phase = 0; phase < DOWN_TOKENS; phase++) {
                if (own_lane < count * 8 && own_lane / (8 * PHASE_CHUNKS) == phase)
#pragma unroll
                    for (int i = 0; i < 2 * DOWN_TOKENS; i++)
                        *(uint4*)(scratch.activated(own_warp, i) + own_lane % (8 * PHASE_CHUNKS) * 8) = quads[i];
                __syncwarp();
                fragments.template multiply_some<PHASE_CHUNKS>(acc, x, phase * PHASE_CHUNKS, count);
                __syncwarp();
            }
            compute_now(own_warp);
            if ((own_lane & 3) < DOWN_TOKENS) {
                float* sums = scratch.down_sums[first_token + (own_lane & 3)][own_lane >> 2] + 2 * own_warp;
                sums[0] = acc[0];
                if (2 * own_warp + 1 < p.down.num_partitions) sums[1] = acc[3];
            }
        }
        if (TOKENS > 2) to = place_number();
        u32* place = place_of(to);
        if (!finishes(DOWN_BARRIER, num_warps, warp() == 0)) return;
#pragma unroll
        for (int first_token = 0; first_token < TOKENS; first_token += DOWN_TOKENS) {
            // A lane of the first warp has a row of a token, and of those that are multiplied later.
            const int token = first_token + (TOKENS > 1 ? lane() / 8 % DOWN_TOKENS : 0);
            const float y = fmaf(__fadd_rn(sum_in_order<5>(scratch.down_sums[token][lane() % 8]), 0.0f), 1.0f,
                                 scratch.residuals[token][lane() % 8]);
            if (lane() < 8 * DOWN_TOKENS) publish(place + first_token * p.places.end_words, __float_as_uint(y));
        }
    }
};
