// The products of a block of streamed_layers. A warp has a partition of one of the block's tiles; others add a tile's
// partitions up.
#pragma once
#include "../repack/packed_element.cuh"
#include "streamed_layers.cuh"

constexpr int NORM_QUADS = MAX_STREAMED_WIDTH / PARTITION_STEP;
constexpr int BRANCH_QUADS = (MAX_STREAMED_INPUTS / 8 + STREAM_WARPS * 32 - 1) / (STREAM_WARPS * 32);
constexpr int FINISH_WARP = STREAM_WARPS - MAX_BLOCK_TILES;  // the first of those that finish tiles
static_assert(FINISH_WARP >= NORM_PARTITIONS, "none of them norms");

class StreamedBlock {
    const StreamedLayersParams& p;
    BlockScratch& scratch;
    UnitRing& ring;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

   public:
    DEVICE StreamedBlock(const StreamedLayersParams& p, BlockScratch& scratch, UnitRing& ring)
        : p(p), scratch(scratch), ring(ring) {}

    // The columns that are the block's rows of the down projection.
    DEVICE void publish_embeddings() const {
        const LayersEmbedding& from = p.embedding;
        const int row = table_row(p, 0), first = first_tile(DOWN) * 16, end = first + num_tiles(DOWN) * 16;
        for (int column = first + threadIdx.x; column < end; column += blockDim.x) {
            const float element = from.format == Q4_K ? packed_element<Q4_K>(from.packed, row, column, from.num_units)
                                  : from.format == Q5_K
                                      ? packed_element<Q5_K>(from.packed, row, column, from.num_units)
                                      : packed_element<Q6_K>(from.packed, row, column, from.num_units);
            publish(StreamedWords(p, 0).begin(column), __float_as_uint(__fmul_rn(element, from.scale)));
        }
    }

    // A product of a layer; HEAD: of the last one. Some of it is unpacked while the block waits for others.
    DEVICE void multiply(const WarpStep& step) {
        if (num_tiles(step.product()) == 0) return;
        float acc[4] = {};
        multiply_item(acc, step);
        const int product = step.product();
        if (product == HEAD) {
            finish_logits(acc);
            return;
        }
        const StreamedProduct& cut = p.products[product];
        const WarpItem& item = scratch.items[warp][product];
        if (item.count && (lane & 3) == 0) {
            float* to = scratch.sums + item.sums + (lane >> 2) * cut.row_floats;
            to[0] = acc[0], to[8 * cut.row_floats] = acc[2];
        }
        if (finished_tile(product) < 0) {
            arrive_warps(SUMS_BARRIER, STREAM_WARPS);
            return;
        }
        sync_warps(SUMS_BARRIER, STREAM_WARPS);
        finish_tile(step.layer(), product);
    }

   private:
    DEVICE int first_tile(int product) const { return scratch.tiles[product][0]; }
    DEVICE int num_tiles(int product) const { return scratch.tiles[product][1]; }
    // The block's tile that this warp finishes, or -1.
    DEVICE int finished_tile(int product) const {
        const int tile = warp - FINISH_WARP;
        return tile < num_tiles(product) ? tile : -1;
    }
    DEVICE void multiply_item(float (&acc)[4], const WarpStep& step) {
        ReadyChunks ready;
        const int layer = step.layer(), product = step.product(), format = p.format(layer, product);
        const WarpItem& item = scratch.items[warp][product];
        ring.make_ready(ready, format, item.count > 0);
        take_x(layer, product);
        sync_block();
        if (product == HEAD) empty_words();
        const u8* x = product == OUTPUT || product == DOWN ? scratch.branch : scratch.normed;
        if (item.count)
            ring.multiply(acc, ready, format, item.count, shared_address(x) + item.x * (UNIT_CHUNKS * 128) + x_lane());
    }
    DEVICE void finish_tile(int layer, int product) const {
        const int tile = finished_tile(product), number = first_tile(product) + tile;
        const int row = number * 16 + lane % 16;
        const StreamedWords words(p, layer);
        const float y = __fadd_rn(sum_of_partitions(p.products[product], tile), 0.0f);
        if (product == QKV) {
            const u32 word = word_of_halves(y);
            if (lane < 16 && lane % 2 == 0) publish(words.qkv(row / 2), word);
        } else if (product == GATES) {
            const u32 word = word_of_halves(swiglu(y, __shfl_down_sync(ALL_LANES, y, 8)));
            if (lane < 8 && lane % 2 == 0) publish(words.activated(number * 4 + lane / 2), word);
        } else {
            u32* to = product == OUTPUT ? words.middle(row) : words.end(row);
            if (lane < 16) publish(to, __float_as_uint(fmaf(y, 1.0f, scratch.residuals[tile][lane])));
        }
    }
    // The logits of a tile, which is a warp's, and the rank of the block's largest.
    DEVICE void finish_logits(const float (&acc)[4]) {
        const bool has_tile = scratch.items[warp][HEAD].count > 0;
        const int first_row = (first_tile(HEAD) + warp) * 16;
        u64 rank = NO_RANK;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first_row + 8 * half + (lane >> 2);
            if (!has_tile || (lane & 3) || row >= p.head.num_rows) continue;
            const float logit = __fadd_rn(acc[2 * half], 0.0f);
            p.head.logits[row] = logit;
            rank = larger(rank, rank_of_logit(logit, row));
        }
        rank = warp_largest(rank);
        if (lane == 0) scratch.ranks[warp] = rank;
        sync_block();
        if (warp) return;
        rank = warp_largest(lane < STREAM_WARPS ? scratch.ranks[lane] : NO_RANK);
        if (lane == 0) publish(rank_place(p, 0, blockIdx.x), rank_bits(rank), rank_id(rank));
    }
    DEVICE float sum_of_partitions(const StreamedProduct& cut, int tile) const {
        const float* from = scratch.sums + cut.sums_at + (tile * 16 + lane % 16) * cut.row_floats;
        float sum = -0.0f;
#pragma unroll
        for (int i = 0; i < MAX_STREAMED_PARTITIONS; i += 4) {
            if (i >= cut.num_partitions) break;
            const float4 four = *(const float4*)(from + i);
            sum = sum + four.x + four.y + four.z + four.w;
        }
        return sum;
    }

    // Waits for what a product multiplies and leaves it in shared memory.
    DEVICE void take_x(int layer, int product) {
        const StreamedWords words(p, layer);
        if (product == OUTPUT || product == DOWN) {
            const bool is_output = product == OUTPUT;
            const int tile = finished_tile(product);
            if (tile >= 0 && lane < 16) {  // what the tile is added to, which is there
                const int row = (first_tile(product) + tile) * 16 + lane;
                scratch.residuals[tile][lane] =
                    __uint_as_float(await_word(is_output ? words.begin(row) : words.middle(row)));
            }
            __syncwarp();
            take(is_output ? words.attended(0) : words.activated(0),
                 (is_output ? p.cut.output_width : p.cut.intermediate) / 8);
            return;
        }
        const bool is_last = layer + 1 == p.cut.num_layers;
        if (product == QKV)
            prefetch_norm(p.layers[layer].norms[1]);
        else if (product == GATES)
            prefetch_norm(is_last ? p.head.norm : p.layers[layer + 1].norms[0]);
        norm(product == HEAD ? p.head.norm : p.layers[layer].norms[product == GATES], product == QKV ? words.begin(0)
                                                                                      : product == GATES
                                                                                          ? words.middle(0)
                                                                                          : words.end(0));
    }
    // Norm weights come from device memory: asked for when they are needed they would come after the words.
    DEVICE void prefetch_norm(const float* weights) const {
        if (warp == NORM_PARTITIONS)
            for (int column = lane * 32; column < p.cut.width; column += 1024) prefetch(weights + column);
    }
    // The warps that have a row's partitions leave the normed row.
    DEVICE void norm(const float* weights, const u32* x) {
        if (warp >= NORM_PARTITIONS) return;
        const NormParams norm = {nullptr, nullptr, p.cut.epsilon, p.cut.width, p.cut.inverse_width};
        float4 w[NORM_QUADS], v[NORM_QUADS];
        uint4 quads[NORM_QUADS];
        await<NORM_QUADS>([&](int q) { quads[q] = load_quad(x + partition_column(warp) + q * PARTITION_STEP); },
                          [&](int q) { return has_come(quads[q]); });
        __syncwarp();
        float squares = 0.0f;
#pragma unroll
        for (int q = 0; q < NORM_QUADS; q++) {
            w[q] = *(const float4*)(weights + partition_column(warp) + q * PARTITION_STEP);
            const uint4 quad = quads[q];
            v[q] = sum_of(make_float4(__uint_as_float(quad.x), __uint_as_float(quad.y), __uint_as_float(quad.z),
                                      __uint_as_float(quad.w)),
                          0.0f);
            squares = add_squares(squares, v[q]);
        }
        squares = warp_sum(squares);
        if (lane == 0) scratch.norm_sums[warp] = squares;
        sync_warps(NORM_BARRIER, NORM_PARTITIONS);
        const float factor = norm_factor(norm, row_sum(scratch.norm_sums));
#pragma unroll
        for (int q = 0; q < NORM_QUADS; q++) {
            const int column = partition_column(warp) + q * PARTITION_STEP;
            const uint2 words = pack_quad(scale_quad(norm, w[q], column, v[q], factor));
            *(u32*)(scratch.normed + x_place(column / 2)) = words.x;
            *(u32*)(scratch.normed + x_place(column / 2 + 1)) = words.y;
        }
    }
    DEVICE void take(const u32* words, int num_quads) {
        uint4 quads[BRANCH_QUADS];
        const u32* places[BRANCH_QUADS];
#pragma unroll
        for (int i = 0; i < BRANCH_QUADS; i++)
            places[i] = words + 4 * min((int)threadIdx.x + i * STREAM_WARPS * 32, num_quads - 1);
        await_quads(quads, places);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < BRANCH_QUADS; i++) {
            const int quad = threadIdx.x + i * STREAM_WARPS * 32;
            if (quad >= num_quads) continue;
            *(u32*)(scratch.branch + x_place(4 * quad)) = quads[i].x;
            *(u32*)(scratch.branch + x_place(4 * quad + 1)) = quads[i].y;
            *(u32*)(scratch.branch + x_place(4 * quad + 2)) = quads[i].z;
            *(u32*)(scratch.branch + x_place(4 * quad + 3)) = quads[i].w;
        }
    }

    // The block's share of all words but those that come out of the last layer. Once these are all there, nobody writes
    // or reads the others any more: for each of those somebody has waited, and made of it what these are made of.
    DEVICE void empty_words() const {
        const int num_quads = (StreamedWords(p, p.cut.num_layers - 1).end(0) - p.words) / 4;
#pragma unroll 1
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < num_quads; i += gridDim.x * blockDim.x)
            make_empty(p.words + 4 * i);
    }
};
