// Blocks with rows of the products. Block b has tile b of the output projection, or one of Q, K and V, or both; some
// tiles of gates and up projections; half of tile b / 2 of the down projection; and tiles of the output head. A warp
// has a partition of a tile, or two of half a tile. Tokens are columns of the tensor core's B operand, so two take
// hardly longer than one.
#pragma once
#include "../norm/norm.cuh"
#include "decode_layers_weights.cuh"

constexpr int FEED_WARP = LAYER_WARPS - 1;  // it copies weights
constexpr int GATE_WARPS = FEED_WARP;       // as many as a block's tiles of gates have partitions
// These unpack what the down projection will need: no partition of output is theirs.
constexpr int UNPACK_WARPS = 8;

// A row of x of each token; rows lie on different banks.
constexpr int X_STRIDE = MAX_WIDTH + (TOKENS > 1 ? 8 : 0);
// The down projection is multiplied by so many tokens at a time. The columns that a warp has of their x are there in as
// many phases as they are.
constexpr int DOWN_TOKENS = TOKENS < 4 ? TOKENS : 4;
constexpr int PHASE_CHUNKS = DOWN_CHUNKS / DOWN_TOKENS, PHASE_STRIDE = PHASE_CHUNKS * 64 + 8;
constexpr int MAX_DOWN_WARPS = DOWN_SUMS / 2;
// Four tokens have less shared memory than they would like: what gates and the down projection multiply has one place.
constexpr bool SHARES_X = TOKENS > 2;
// With several tokens the next layer's gates come while this one's are multiplied, as on their way earlier they would
// delay the words of what attention gives; with eight, once the next layer has begun. With one that takes longer.
constexpr bool GATES_AFTER_X = TOKENS > 4, GATES_AFTER_MIDDLE = TOKENS > 1 && !GATES_AFTER_X;
constexpr int HEAD_UNIT = Layout<Q8_0>::unit_bytes;
constexpr int X_COLUMNS = TOKENS * X_STRIDE, PHASE_COLUMNS = 2 * DOWN_TOKENS * PHASE_STRIDE;
constexpr int ACTIVATED_AT = SHARES_X ? 0 : X_COLUMNS, ACTIVATED_END = ACTIVATED_AT + MAX_DOWN_WARPS * PHASE_COLUMNS;
constexpr int ALL_COLUMNS = ACTIVATED_END > X_COLUMNS ? ACTIVATED_END : X_COLUMNS;
// Eight tokens leave no place for the down projection's unpacked weights: they are unpacked once gates are multiplied.
constexpr bool UNPACKS_LATE = TOKENS > 4;
constexpr int TILE_STRIDE = TOKENS > 2 ? 8 : TILE_SUMS;

struct ProductScratch {
    u64 barriers[3][2];  // of `WeightBuffer`s: of Q, K and V or output, of gates, of down projections
    u64 stream_barrier;  // the residual stream has come to a layer, or to its gates: those of the next may be copied
    alignas(16) float norm_sums[TOKENS][NORM_PARTITIONS];  // -0 where a row has no partition
    // Of a row's partitions; those that it has not are -0, which changes no bit.
    float tile_sums[TOKENS][16][TILE_STRIDE];
    float gate_sums[MAX_GATE_TILES][TOKENS][16][GATE_SUMS];
    float down_sums[TOKENS][8][DOWN_SUMS];
    alignas(16) float residuals[TOKENS][8];  // of the block's rows of the down projection
    alignas(16) u16 columns[ALL_COLUMNS];

    DEVICE u16* x(int token) { return columns + token * X_STRIDE; }
    // A row of what a warp multiplies in a phase of the down projection.
    DEVICE u16* activated(int warp, int row) {
        return columns + ACTIVATED_AT + warp * PHASE_COLUMNS + row * PHASE_STRIDE;
    }
};

template <int FOURS>
DEVICE float sum_in_order(const float* row) {
    float4 fours[FOURS];
#pragma unroll
    for (int i = 0; i < FOURS; i++) fours[i] = ((const float4*)row)[i];
    float sum = -0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++) sum = sum + fours[i].x + fours[i].y + fours[i].z + fours[i].w;
    return sum;
}

// As `Epilogue` of matmul_epilogue.cuh has it.
DEVICE float swiglu(float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; }

// Two neighbouring lanes' values as a word of float16, in the even one.
DEVICE u32 word_of_halves(float y) {
    const u32 half = to_half(y);
    return half | __shfl_down_sync(ALL_LANES, half, 1) << 16;
}

class ProductBlock {
    enum Barrier {
        NORM_BARRIER = 1,
        QKV_X_BARRIER,
        TILE_BARRIER,
        GATE_X_BARRIER,
        GATE_BARRIER,
        DOWN_BARRIER,
        FREE_BARRIER,
        READY_BARRIER,
        HEAD_BARRIER
    };

    static constexpr int PASSES = (TOKENS + 1) / 2;
    // Rows of several tokens are normed by twice as many warps, each of half of them.
    static constexpr int NORM_GROUPS = TOKENS > 1 ? 2 : 1, GROUP_TOKENS = TOKENS / NORM_GROUPS;
    static constexpr u32 NOWHERE = 0xFFFFFFFFu;

    const DecodeLayersParams& p;
    ProductScratch& scratch;

    // What follows is found anew wherever it is asked for: registers are for weights.
    DEVICE static int warp() { return threadIdx.x / 32; }
    DEVICE static int lane() { return threadIdx.x % 32; }
    DEVICE static int block() {
        int index;
        asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
        return index;
    }
    DEVICE WeightBuffer buffer(const DecodeProduct& product, int number) const {
        const u32 shared = shared_address(&scratch) - p.cut.scratch_at;
        const u32 barriers = shared_address(scratch.barriers[number]);
        return {shared + product.buffer_at, barriers, barriers + 8};
    }
    DEVICE WeightBuffer tile_buffer() const { return buffer(p.qkv, 0); }
    DEVICE WeightBuffer gate_buffer() const { return buffer(p.gate_up, 1); }
    DEVICE WeightBuffer down_buffer() const { return buffer(p.down, 2); }

    DEVICE int qkv_tile() const { return block() - p.cut.qkv_block; }
    DEVICE bool has_qkv() const { return (u32)qkv_tile() < p.qkv.num_tiles; }
    DEVICE bool has_output() const { return block() < p.output.num_tiles; }
    // Which of the fills of a block's tile buffer is a layer's: a block with both tiles has output's after the other.
    DEVICE int tile_fill(int layer, bool is_output) const {
        return TOKENS > 2 && has_qkv() && has_output() ? 2 * layer + is_output : layer;
    }
    DEVICE int first_gate_tile() const { return block() * p.cut.gate_tiles; }
    DEVICE int num_gate_tiles() const { return min(p.cut.gate_tiles, p.gate_up.num_tiles - first_gate_tile()); }
    DEVICE bool has_down() const { return block() < 2 * p.down.num_tiles; }

    // A row's partitions, of which a warp norms one, of the tokens of its group.
    DEVICE int num_norm_partitions() const { return p.cut.width / NORM_WIDTH; }
    DEVICE int num_norm_warps() const { return num_norm_partitions() * NORM_GROUPS; }
    DEVICE int norm_group() const { return NORM_GROUPS > 1 && warp() >= num_norm_partitions(); }
    DEVICE int norm_partition() const { return warp() - norm_group() * num_norm_partitions(); }
    DEVICE int norm_token(int i) const { return norm_group() * GROUP_TOKENS + i; }
    // The partition of a tile of Q, K and V or output that this warp has. Of one token these warps norm nothing.
    DEVICE static int tile_partition(const DecodeProduct& product) {
        return warp() - (FEED_WARP - product.num_partitions);
    }
    DEVICE int num_feeding_warps() const { return max(num_down_warps(), UNPACK_WARPS); }
    DEVICE int num_down_warps() const { return (p.down.num_partitions + 1) / 2; }

   public:
    DEVICE ProductBlock(const DecodeLayersParams& p, u8* shared)
        : p(p), scratch(*(ProductScratch*)(shared + p.cut.scratch_at)) {
        auto fill = [](float* values, int count, float value) {
            for (int i = threadIdx.x; i < count; i += blockDim.x) values[i] = value;
        };
        fill(scratch.norm_sums[0], TOKENS * NORM_PARTITIONS, -0.0f);
        fill(scratch.tile_sums[0][0], TOKENS * 16 * TILE_STRIDE, -0.0f);
        fill(scratch.gate_sums[0][0][0], MAX_GATE_TILES * TOKENS * 16 * GATE_SUMS, -0.0f);
        fill(scratch.down_sums[0][0], TOKENS * 8 * DOWN_SUMS, -0.0f);
        if (threadIdx.x == 0) {
            tile_buffer().init(has_qkv() ? p.qkv.num_partitions : p.output.num_partitions);
            gate_buffer().init(GATE_WARPS);
            down_buffer().init(UNPACKS_LATE ? num_down_warps() : UNPACK_WARPS);
            barrier_init(shared_address(&scratch.stream_barrier), 1);
            publish_barriers();
        }
        __syncthreads();
    }

    DEVICE void run() {
        if (warp() == FEED_WARP) {
            feed();
            return;
        }
        wait_for_previous();
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

    // ---- the output head: a warp has a tile at a time, and a ring of units, which take the place of the layers'
    // weights

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
    }
    DEVICE void multiply_head() {
        if (warp() < num_norm_warps())
            norm(norm_weights(p.head.norm), p.words + LayerWords(p, p.cut.num_layers - 1).end(0, 0), false, false,
                 p.head.rows);
        const u32 x = x_address(0);
        sync_warps(HEAD_BARRIER, GATE_WARPS + 1);
        const int num_chunks = p.head.num_chunks, num_blocks = p.cut.attention_block;
        int slot = 0, phase = 0, next_tile = head_tile(warp(), 0, num_blocks), next_chunk = HEAD_UNITS;
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
                if (at < p.head.num_rows) p.head.logits[(i64)token * p.head.num_rows + at] = __fadd_rn(sum, 0.0f);
            });
        }
    }

    // What comes into a layer; into the first one, what was there before.
    DEVICE const u32* layer_x(int layer) const {
        return layer ? p.words + LayerWords(p, layer - 1).end(0, 0) : (const u32*)p.x;
    }

    // Where a column of a row of it is: of words, or of what was there before.
    DEVICE u32 place_in_row(int row, int column, bool is_there) const {
        return is_there ? row * p.cut.width + column : LayerWords(p, 0).in_end(row, column);
    }

    // Those of this lane's columns. They are loaded a product ahead: where weights of a block are on their way, a load
    // from the L2 cache takes as long as the words.
    DEVICE float4 norm_weights(const float* weights) const {
        float4 w = {};
        if (warp() < num_norm_warps()) w = *(const float4*)(weights + partition_column(norm_partition()));
        return w;
    }

    // The warps that have a row's partitions leave the normed rows in `scratch.x`. `keeps_residuals`: and what the down
    // projection is added to in this block in `scratch.residuals`.
    DEVICE void norm(float4 w, const u32* x, bool is_there, bool keeps_residuals, const i32* rows = nullptr) {
        const NormParams norm = {nullptr, nullptr, p.cut.epsilon, p.cut.width, p.cut.inverse_width};
        const int column = partition_column(norm_partition());
        const u32* places[GROUP_TOKENS];
        uint4 quads[GROUP_TOKENS];
        float4 v[GROUP_TOKENS];
        float squares[GROUP_TOKENS];
#pragma unroll
        for (int i = 0; i < GROUP_TOKENS; i++) {
            const int row = rows ? rows[norm_token(i)] : norm_token(i);
            places[i] =
                x + (keeps_residuals ? LayerWords(p, 0).in_middle(row, column) : place_in_row(row, column, is_there));
        }
        if (is_there)
#pragma unroll
            for (int i = 0; i < GROUP_TOKENS; i++) quads[i] = load_quad(places[i]);
        else
            await_quads(quads, places);
        __syncwarp();
        if ((keeps_residuals ? GATES_AFTER_MIDDLE : GATES_AFTER_X) && threadIdx.x == 0)
            barrier_arrive(shared_address(&scratch.stream_barrier));
#pragma unroll
        for (int i = 0; i < GROUP_TOKENS; i++) {
            const uint4 quad = quads[i];
            v[i] = sum_of(make_float4(__uint_as_float(quad.x), __uint_as_float(quad.y), __uint_as_float(quad.z),
                                      __uint_as_float(quad.w)),
                          0.0f);
            if (keeps_residuals && (u32)(column - block() * 8) < 8)
                *(uint4*)(scratch.residuals[norm_token(i)] + (column - block() * 8)) = quad;
            squares[i] = add_squares(0.0f, v[i]);
        }
        // As `warp_sum`, those of the tokens side by side.
#pragma unroll
        for (int distance = 16; distance; distance >>= 1)
#pragma unroll
            for (int i = 0; i < GROUP_TOKENS; i++) squares[i] += __shfl_xor_sync(ALL_LANES, squares[i], distance);
#pragma unroll
        for (int i = 0; i < GROUP_TOKENS; i++)
            if (lane() == 0) scratch.norm_sums[norm_token(i)][norm_partition()] = squares[i];
        sync_warps(NORM_BARRIER, num_norm_warps());
#pragma unroll
        for (int i = 0; i < GROUP_TOKENS; i++) {
            const int token = norm_token(i);
            const float factor = norm_factor(norm, sum_in_order<NORM_PARTITIONS / 4>(scratch.norm_sums[token]));
            *(uint2*)(scratch.x(token) + column) = pack_quad(scale_quad(norm, w, column, v[i], factor));
        }
    }

    // Where word `number` is: found before the others have put their sums. Until then it is but a number, as registers
    // are for weights.
    DEVICE u32* place_of(u32 number) const {
        u32* place = p.words + number;
        compute_now(place);
        return place;
    }

    // What this lane gives to ldmatrix for the columns from chunk `first` on: the rows of the tokens, again and again.
    DEVICE u32 x_address(int first) const {
        return shared_address(scratch.x(lane() % TOKENS)) + first * 128 + (lane() >> 3) * 16;
    }
    // Calls use(token, row of the tile, sum) for what this lane has of a product.
    template <typename Use>
    DEVICE static void for_sums(const float (&acc)[4], Use use) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int token = (lane() & 3) * 2 + e;
            if (e >= TOKENS || token >= TOKENS) continue;
            use(token, lane() >> 2, acc[e]);
            use(token, (lane() >> 2) + 8, acc[2 + e]);
        }
    }
    template <int STRIDE>
    DEVICE static void put_sums(float (&sums)[TOKENS][16][STRIDE], int partition, const float (&acc)[4]) {
        for_sums(acc, [&](int token, int row, float sum) { sums[token][row][partition] = sum; });
    }
    // A warp finishes a tile's rows of two tokens at a time: calls use(pass, token, row of the tile, whether it is
    // one).
    template <typename Use>
    DEVICE static void for_rows(Use use) {
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++)
            use(pass, 2 * pass + first_token_of_lane(), lane() % 16, lane() < 16 * TOKENS);
    }
    DEVICE static int first_token_of_lane() { return TOKENS > 1 ? lane() / 16 : 0; }
    // Whether this warp is one of those that finish a product, once `num_warps` have put their sums.
    DEVICE static bool finishes(Barrier barrier, int num_warps, bool is_one) {
        if (is_one) {
            sync_warps(barrier, num_warps);
            return true;
        }
        arrive_warps(barrier, num_warps);
        return false;
    }

    DEVICE void multiply_qkv(int layer, float4 norm_weights) {
        const DecodeLayer& weights = p.layers[layer];
        const int num_warps = p.qkv.num_partitions, partition = tile_partition(p.qkv);
        const int num_x_warps = min(num_norm_warps() + num_warps, FEED_WARP);  // those that norm or multiply
        if (partition < 0) {
            if (warp() >= num_norm_warps()) return;
            norm(norm_weights, layer_x(layer), layer == 0, false);
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
        if (NORM_GROUPS > 1 && warp() < num_norm_warps()) norm(norm_weights, layer_x(layer), layer == 0, false);
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
                const u32* x = layer_x(layer) + place_in_row(token, block() * 16 + row, layer == 0);
                residuals[pass] = __uint_as_float(layer ? await_word(x) : load_word(x));
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
        if (warp() < num_norm_warps()) norm(norm_weights, p.words + LayerWords(p, layer).middle(0, 0), false, true);
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
        // A lane of the first warp has a row of a token, and of those that are multiplied later.
        const int token_of_row = TOKENS > 1 ? lane() / 8 % DOWN_TOKENS : 0, row = block() * 8 + lane() % 8;
        // Of the product's columns two are of each token: one of the first partition's x, one of the second's. Of
        // either's rows that is what counts.
        u32 x = shared_address(scratch.activated(warp(), lane() % (2 * DOWN_TOKENS))) + (lane() >> 3) * 16;
        u32 to = LayerWords(p, layer).end(token_of_row, row);
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
        const bool has_quads = lane() < count * 8;
#pragma unroll 1
        for (int first_token = 0; first_token < TOKENS; first_token += DOWN_TOKENS) {
            uint4 quads[2 * DOWN_TOKENS] = {};
            if (has_quads) {
                const u32* places[2 * DOWN_TOKENS];
#pragma unroll
                for (int i = 0; i < 2 * DOWN_TOKENS; i++)
                    places[i] = p.words + LayerWords(p, layer).activated(first_token + i / 2,
                                                                         (i % 2 ? second : first) * 32 + lane() * 4);
                await_quads(quads, places);
            }
            __syncwarp();
            float acc[4] = {};
#pragma unroll
            for (int phase = 0; phase < DOWN_TOKENS; phase++) {
                if (has_quads && lane() / (8 * PHASE_CHUNKS) == phase)
#pragma unroll
                    for (int i = 0; i < 2 * DOWN_TOKENS; i++)
                        *(uint4*)(scratch.activated(warp(), i) + lane() % (8 * PHASE_CHUNKS) * 8) = quads[i];
                __syncwarp();
                fragments.template multiply_some<PHASE_CHUNKS>(acc, x, phase * PHASE_CHUNKS, count);
                __syncwarp();
            }
            if ((lane() & 3) < DOWN_TOKENS) {
                float* sums = scratch.down_sums[first_token + (lane() & 3)][lane() >> 2] + 2 * warp();
                sums[0] = acc[0];
                if (has_second) sums[1] = acc[3];
            }
        }
        u32* place = place_of(to);
        if (!finishes(DOWN_BARRIER, num_warps, warp() == 0)) return;
#pragma unroll
        for (int first_token = 0; first_token < TOKENS; first_token += DOWN_TOKENS) {
            const int token = first_token + token_of_row;
            const float y = fmaf(__fadd_rn(sum_in_order<5>(scratch.down_sums[token][lane() % 8]), 0.0f), 1.0f,
                                 scratch.residuals[token][lane() % 8]);
            if (lane() >= 8 * DOWN_TOKENS) continue;
            if (layer + 1 < p.cut.num_layers || p.head.packed)
                publish(place + first_token * p.places.end_words, __float_as_uint(y));
            else
                p.x[token * p.cut.width + row] = y;
        }
    }
};
