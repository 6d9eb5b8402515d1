// Blocks with rows of the products. Block b has tile b of the output projection, or one of Q, K and V; some tiles of
// gates and up projections; and half of tile b / 2 of the down projection. A warp has a partition of a tile, or two of
// half a tile.
#pragma once
#include "../norm/norm.cuh"
#include "decode_layers_weights.cuh"

constexpr int FEED_WARP = LAYER_WARPS - 1;  // it copies weights
// While these wait for nothing else, they unpack what the down projection will need.
constexpr int FIRST_UNPACK_WARP = 7, UNPACK_WARPS = FEED_WARP - FIRST_UNPACK_WARP;

struct ProductScratch {
    u64 barriers[3][2];  // of `WeightBuffer`s: of Q, K and V or output, of gates, of down projections
    float norm_sums[NORM_PARTITIONS];
    float tile_sums[16][TILE_SUMS];  // of a row's partitions; those that it has not are -0, which changes no bit
    float gate_sums[MAX_GATE_TILES][16][GATE_SUMS];
    float down_sums[8][DOWN_SUMS];
    alignas(16) u16 x[MAX_WIDTH];
    alignas(16) u16 activated[MAX_INTERMEDIATE];
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
        READY_BARRIER
    };

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
    DEVICE int first_gate_tile() const { return block() * p.cut.gate_tiles; }
    DEVICE int num_gate_tiles() const { return min(p.cut.gate_tiles, p.gate_up.num_tiles - first_gate_tile()); }
    DEVICE bool has_down() const { return block() < 2 * p.down.num_tiles; }

    DEVICE int num_norm_warps() const { return p.cut.width / NORM_WIDTH; }
    // The partition of a tile of Q, K and V or output that this warp has. These warps norm nothing.
    DEVICE static int tile_partition(const DecodeProduct& product) {
        return warp() - (FEED_WARP - product.num_partitions);
    }
    DEVICE int num_gate_warps() const { return max(p.cut.gate_tiles * p.gate_up.num_partitions, num_norm_warps()); }
    DEVICE int num_down_warps() const { return (p.down.num_partitions + 1) / 2; }

   public:
    DEVICE ProductBlock(const DecodeLayersParams& p, u8* shared)
        : p(p), scratch(*(ProductScratch*)(shared + p.cut.scratch_at)) {
        auto fill = [](float* values, int count, float value) {
            for (int i = threadIdx.x; i < count; i += blockDim.x) values[i] = value;
        };
        fill(scratch.norm_sums, NORM_PARTITIONS, 0.0f);
        fill(scratch.tile_sums[0], 16 * TILE_SUMS, -0.0f);
        fill(scratch.gate_sums[0][0], MAX_GATE_TILES * 16 * GATE_SUMS, -0.0f);
        fill(scratch.down_sums[0], 8 * DOWN_SUMS, -0.0f);
        if (threadIdx.x == 0) {
            tile_buffer().init(has_qkv() ? p.qkv.num_partitions : p.output.num_partitions);
            gate_buffer().init(num_gate_warps());
            down_buffer().init(UNPACK_WARPS);
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
#pragma unroll 1
        for (int layer = 0; layer < p.cut.num_layers; layer++) {
            if (has_qkv()) multiply_qkv(layer);
            if (has_down()) unpack_down(layer);
            if (num_gate_tiles() > 0) multiply_gate(layer);
            if (has_down()) multiply_down(layer);
        }
    }

   private:
    DEVICE void feed() const {
#pragma unroll 1
        for (int l = 0; l < p.cut.num_layers; l++) {
            const DecodeLayer& layer = p.layers[l];
            if (has_qkv()) tile_buffer().fill(layer.qkv, layer.qkv_format, p.qkv.num_chunks, qkv_tile(), 1, l);
            if (has_output()) tile_buffer().fill(layer.output, layer.output_format, p.output.num_chunks, block(), 1, l);
            if (num_gate_tiles() > 0)
                gate_buffer().fill(layer.gate_up, layer.gate_up_format, p.gate_up.num_chunks, first_gate_tile(),
                                   num_gate_tiles(), l);
            if (has_down()) down_buffer().fill(layer.down, layer.down_format, p.down.num_chunks, block() / 2, 1, l);
        }
    }

    // What comes into a layer; into the first one, what was there before.
    DEVICE const u32* layer_x(int layer) const { return layer ? LayerWords(p, layer - 1).end() : (const u32*)p.x; }

    // The warps that have a row's partitions leave the normed row in `scratch.x`.
    DEVICE void norm(const float* weights, const u32* x, bool is_there) {
        const NormParams norm = {weights, nullptr, p.cut.epsilon, p.cut.width, p.cut.inverse_width};
        const int column = partition_column(warp());
        const float4 w = *(const float4*)(weights + column);
        const uint4 quad = is_there ? load_quad(x + column) : await_quad(x + column);
        const float4 v = sum_of(make_float4(__uint_as_float(quad.x), __uint_as_float(quad.y), __uint_as_float(quad.z),
                                            __uint_as_float(quad.w)),
                                0.0f);
        const float squares = warp_sum(add_squares(0.0f, v));
        if (lane() == 0) scratch.norm_sums[warp()] = squares;
        sync_warps(NORM_BARRIER, num_norm_warps());
        const float factor = norm_factor(norm, row_sum(scratch.norm_sums));
        *(uint2*)(scratch.x + column) = pack_quad(scale_quad(norm, w, column, v, factor));
    }

    // What this lane gives to ldmatrix for the columns from chunk `first` on: eight times the same row.
    DEVICE static u32 x_address(const u16* x, int first) {
        return shared_address(x) + first * 128 + (threadIdx.x % 32 >> 3) * 16;
    }
    DEVICE static void put_sums(float* sums, int stride, int partition, const float (&acc)[4]) {
        if ((lane() & 3) == 0) {
            sums[(lane() >> 2) * stride + partition] = acc[0];
            sums[((lane() >> 2) + 8) * stride + partition] = acc[2];
        }
    }
    // Whether this warp is one of those that finish a product, once `num_warps` have put their sums.
    DEVICE static bool finishes(Barrier barrier, int num_warps, bool is_one) {
        if (is_one) {
            sync_warps(barrier, num_warps);
            return true;
        }
        arrive_warps(barrier, num_warps);
        return false;
    }

    DEVICE void multiply_qkv(int layer) {
        const DecodeLayer& weights = p.layers[layer];
        const int num_warps = p.qkv.num_partitions, partition = tile_partition(p.qkv);
        if (warp() < num_norm_warps()) {
            norm(weights.attention_norm, layer_x(layer), layer == 0);
            arrive_warps(QKV_X_BARRIER, num_warps + num_norm_warps());
            return;
        }
        if (partition < 0) return;
        const int first = p.qkv.first_chunk(partition), count = p.qkv.first_chunk(partition + 1) - first;
        float bias = 0.0f;
        if (partition == 0 && weights.qkv_bias) bias = weights.qkv_bias[qkv_tile() * 16 + lane() % 16];
        Fragments<TILE_CHUNKS> fragments;
        tile_buffer().wait(layer);
        fragments.unpack(weights.qkv_format, tile_buffer().units, 0, 0, first, count);
        tile_buffer().release();
        sync_warps(QKV_X_BARRIER, num_warps + num_norm_warps());
        float acc[4] = {};
        fragments.multiply(acc, x_address(scratch.x, first), count);
        put_sums(scratch.tile_sums[0], TILE_SUMS, partition, acc);
        if (!finishes(TILE_BARRIER, num_warps, partition == 0)) return;
        const float sum = sum_in_order<2>(scratch.tile_sums[lane() % 16]);
        const u32 word = word_of_halves(__fadd_rn(sum, bias));
        if (lane() < 16 && lane() % 2 == 0) publish(LayerWords(p, layer).qkv + qkv_tile() * 8 + lane() / 2, word);
    }

    // Some warps call it, which have gates unpacked already: it takes few registers.
    DEVICE void multiply_output(int layer, int partition) {
        const DecodeLayer& weights = p.layers[layer];
        const int first = p.output.first_chunk(partition), count = p.output.first_chunk(partition + 1) - first;
        const int row = block() * 16 + lane() % 16;
        tile_buffer().wait(layer);
        float residual = 0.0f;
        if (partition == 0) {
            const u32* x = layer_x(layer) + row;
            residual = __uint_as_float(layer ? await_word(x) : load_word(x));
        }
        if (lane() < count * 8)
            *(uint4*)(scratch.x + first * 64 + lane() * 8) =
                await_quad(LayerWords(p, layer).attended() + first * 32 + lane() * 4);
        __syncwarp();
        float acc[4] = {};
#pragma unroll 1
        for (int i = 0; i < count; i++) {
            Fragments<1> fragments;
            fragments.unpack(weights.output_format, tile_buffer().units, 0, 0, first + i, 1);
            fragments.multiply(acc, x_address(scratch.x, first + i), 1);
        }
        tile_buffer().release();
        put_sums(scratch.tile_sums[0], TILE_SUMS, partition, acc);
        if (!finishes(TILE_BARRIER, p.output.num_partitions, partition == 0)) return;
        const float y = fmaf(__fadd_rn(sum_in_order<2>(scratch.tile_sums[lane() % 16]), 0.0f), 1.0f, residual);
        if (lane() < 16) publish(LayerWords(p, layer).middle() + row, __float_as_uint(y));
    }

    DEVICE void multiply_gate(int layer) {
        const DecodeLayer& weights = p.layers[layer];
        const int num_warps = num_gate_warps(), num_partitions = p.gate_up.num_partitions;
        if (warp() >= num_warps) return;
        const int tile = warp() / num_partitions, partition = warp() - tile * num_partitions;
        const int first = p.gate_up.first_chunk(partition), count = p.gate_up.first_chunk(partition + 1) - first;
        const bool multiplies = tile < num_gate_tiles();
        Fragments<GATE_CHUNKS> fragments;
        gate_buffer().wait(layer);
        fragments.unpack(weights.gate_up_format, gate_buffer().units, tile, p.gate_up.num_chunks, first,
                         multiplies ? count : 0);
        gate_buffer().release();
        if (has_output() && tile_partition(p.output) >= 0) multiply_output(layer, tile_partition(p.output));
        if (warp() < num_norm_warps()) norm(weights.ffn_norm, LayerWords(p, layer).middle(), false);
        sync_warps(GATE_X_BARRIER, num_warps);
        if (multiplies) {
            float acc[4] = {};
            fragments.multiply(acc, x_address(scratch.x, first), count);
            put_sums(scratch.gate_sums[tile][0], GATE_SUMS, partition, acc);
        }
        if (!finishes(GATE_BARRIER, num_warps, warp() < p.cut.gate_tiles) || warp() >= num_gate_tiles()) return;
        const float y = __fadd_rn(sum_in_order<1>(scratch.gate_sums[warp()][lane() % 16]), 0.0f);
        const float up = __shfl_down_sync(ALL_LANES, y, 8);
        const u32 word = word_of_halves(swiglu(y, up));
        if (lane() < 8 && lane() % 2 == 0)
            publish(LayerWords(p, layer).activated() + (first_gate_tile() + warp()) * 4 + lane() / 2, word);
    }

    // Where the fragments of two partitions are, the first of which is `partition`.
    DEVICE u32 down_fragments(int partition) const {
        return shared_address(&scratch) - p.cut.scratch_at + p.cut.fragments_at + partition / 2 * (DOWN_CHUNKS * 2048);
    }
    // Some warps unpack the down projection's weights to shared memory, while others norm, multiply or wait.
    DEVICE void unpack_down(int layer) {
        if (warp() < FIRST_UNPACK_WARP) return;
        const int format = p.layers[layer].down_format, count = p.down.first_chunk(1);
        down_buffer().wait(layer);
        if (layer) sync_warps(FREE_BARRIER, FEED_WARP);
#pragma unroll 1
        for (int i = warp() - FIRST_UNPACK_WARP; i < num_down_warps() * count; i += UNPACK_WARPS) {
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
        if (warp() >= num_down_warps()) arrive_warps(READY_BARRIER, FEED_WARP);
    }

    DEVICE void multiply_down(int layer) {
        const DecodeLayer& weights = p.layers[layer];
        const int num_warps = num_down_warps();
        if (warp() >= num_warps) return;
        const int first = p.down.first_chunk(2 * warp()), count = p.down.first_chunk(2 * warp() + 1) - first;
        const bool has_second = 2 * warp() + 1 < p.down.num_partitions;
        const int second = has_second ? first + count : first;
        const int row = block() * 8 + lane() % 8;
        Fragments<DOWN_CHUNKS> fragments;
        sync_warps(READY_BARRIER, FEED_WARP);
        fragments.take(down_fragments(2 * warp()), count);
        if (layer + 1 < p.cut.num_layers && warp() < FIRST_UNPACK_WARP) arrive_warps(FREE_BARRIER, FEED_WARP);
        float residual = 0.0f;
        if (warp() == 0) residual = __uint_as_float(await_word(LayerWords(p, layer).middle() + row));
        if (lane() < count * 8) {
            const int starts[2] = {first * 64 + lane() * 8, second * 64 + lane() * 8};
            const u32* words = LayerWords(p, layer).activated();
            uint4 quads[2] = {};
            await<2>([&](int i) { quads[i] = load_quad(words + starts[i] / 2); },
                     [&](int i) { return has_come(quads[i]); });
#pragma unroll
            for (int i = 0; i < 2; i++) *(uint4*)(scratch.activated + starts[i]) = quads[i];
        }
        __syncwarp();
        // Even columns of the product are of the first partition's x, odd ones of the second's: of either's rows that
        // is what counts.
        float acc[4] = {};
        fragments.multiply(acc, x_address(scratch.activated, lane() & 1 ? second : first), count);
        if ((lane() & 3) == 0) {
            float* sums = scratch.down_sums[lane() >> 2] + 2 * warp();
            sums[0] = acc[0];
            if (has_second) sums[1] = acc[3];
        }
        if (!finishes(DOWN_BARRIER, num_warps, warp() == 0)) return;
        const float y = fmaf(__fadd_rn(sum_in_order<5>(scratch.down_sums[lane() % 8]), 0.0f), 1.0f, residual);
        if (lane() >= 8) return;
        if (layer + 1 < p.cut.num_layers)
            publish(LayerWords(p, layer).end() + row, __float_as_uint(y));
        else
            p.x[row] = y;
    }
};
