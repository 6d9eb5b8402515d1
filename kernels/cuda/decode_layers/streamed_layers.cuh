// What the blocks of streamed_layers share: what they are given, which units of weights a warp has, and how these come.
#pragma once
#include "../attention/attention_merge.cuh"
#include "../attention/attention_rope.cuh"
#include "../common/dequant.cuh"
#include "../norm/norm.cuh"
#include "../rope/rope_angles.cuh"
#include "layer_rows.cuh"

// The products of a layer, in their order, and the output head behind all layers.
enum StreamedProductName { QKV, OUTPUT, GATES, DOWN, HEAD, NUM_PRODUCTS };

struct StreamedLayer {
    const u8* packed[HEAD];
    const float* norms[2];  // [width] before Q, K and V, and before gates
    LayerCacheParams cache;
    i32 formats[HEAD];
};

// How a product is cut, in every layer: into tiles of 16 rows, and these into the split-K partitions of all other
// kernels. The first `big_blocks` have `big_tiles` each, those up to `end_block` share the others.
struct StreamedProduct {
    i32 num_tiles, num_units, num_partitions;
    i32 big_blocks, big_tiles, end_block;
    i32 sums_at;     // floats of shared memory before its sums
    i32 row_floats;  // of a row's sums there
};

// Where a layer's words are: first those of Q, K and V, then of what attention gives, of the residual stream after
// that, of the activated gates, and of the residual stream that goes into the next layer.
struct StreamedPlaces {
    u32 first_layer;  // behind the embeddings, which are as the end of a layer
    u32 layer_words;
    u32 attended_at, middle_at, activated_at, end_at;
    u32 ranks_at;  // behind all layers: [blocks, 2] of the largest logits
};

struct StreamedCut {
    i32 num_layers, width, output_width, intermediate;
    i32 attention_block;  // the first that attends
    i32 head_format;
    float epsilon, inverse_width;
};

struct StreamedLayersParams {
    AttentionParams attention;  // `qkv`, `cache`, `work` and `out` are not used
    RopeParams rope;            // its pointers are null
    AngleParams angles;
    LayersRows rows;
    LayersEmbedding embedding;
    u32* words;  // EMPTY, and so again when the kernel ends
    StreamedPlaces places;
    StreamedProduct products[NUM_PRODUCTS];
    StreamedCut cut;
    LayersHead head;
    StreamedLayer layers[MAX_STREAMED_LAYERS];

    DEVICE int num_rank_blocks() const { return gridDim.x; }
    DEVICE const u8* packed(int layer, int product) const {
        return product == HEAD ? head.packed : layers[layer].packed[product];
    }
    DEVICE int format(int layer, int product) const {
        return product == HEAD ? cut.head_format : layers[layer].formats[product];
    }
};

// Where words of a layer are.
struct StreamedWords {
    u32* first;
    const StreamedLayersParams& p;

    DEVICE StreamedWords(const StreamedLayersParams& p, int layer)
        : first(p.words + p.places.first_layer + layer * p.places.layer_words), p(p) {}
    DEVICE u32* qkv(int i) const { return first + i; }
    DEVICE u32* attended(int i) const { return first + p.places.attended_at + i; }
    DEVICE u32* middle(int i) const { return first + p.places.middle_at + i; }
    DEVICE u32* activated(int i) const { return first + p.places.activated_at + i; }
    DEVICE u32* end(int i) const { return first + p.places.end_at + i; }
    // What comes into the layer: the end of the one before.
    DEVICE u32* begin(int i) const { return first - p.cut.width + i; }
};

// ---- who has what

struct BlockTiles {
    i32 first, count;

    DEVICE BlockTiles(const StreamedProduct& product, int block) {
        first = block * product.big_tiles, count = product.big_tiles;
        if (block < product.big_blocks) return;
        const int others = product.end_block - product.big_blocks, number = block - product.big_blocks;
        const int begin = product.big_blocks * product.big_tiles, rest = product.num_tiles - begin;
        first = begin + number * rest / max(others, 1);
        count = number < others ? begin + (number + 1) * rest / others - first : 0;
    }
};

// What a warp has of a product: a partition of a tile.
struct WarpItem {
    u32 first;  // number of its first unit in the matrix; the next ones are 4 further each
    i32 count;  // of units; 0: none
    i32 x;      // the unit of x that it begins with
    i32 sums;   // where its sums go: floats of shared memory before them
};

DEVICE WarpItem find_item(const StreamedProduct& product, int block, int warp) {
    const BlockTiles tiles(product, block);
    const int local = warp / product.num_partitions, partition = warp - local * product.num_partitions;
    if (local >= tiles.count) return {0, 0, 0, 0};
    const int tile = tiles.first + local, units = product.num_units;
    const int first = partition * units / product.num_partitions;
    const int end = (partition + 1) * units / product.num_partitions;
    return {(u32)(((tile >> 2) * units + first) * 4 + (tile & 3)), end - first, first,
            product.sums_at + local * 16 * product.row_floats + partition};
}

// ---- weights

constexpr int SLOT_BYTES = Layout<Q6_K>::unit_bytes;                     // of the widest format
constexpr int UNIT_CHUNKS = 4, UNIT_VECTORS = (SLOT_BYTES + 511) / 512;  // 16 bytes a lane
constexpr int WARP_SCALE_BYTES = 640;

DEVICE int unit_bytes_of(int format) {
    return format == Q4_K   ? Layout<Q4_K>::unit_bytes
           : format == Q5_K ? Layout<Q5_K>::unit_bytes
                            : Layout<Q6_K>::unit_bytes;
}

// Copies a warp's units to its ring, of one product after the other through all layers, as places become free.
class UnitFeed {
    const StreamedLayersParams& p;
    const u32 items;           // in shared memory: [NUM_PRODUCTS] WarpItem
    const u8* next = nullptr;  // this lane's first 16 bytes of the next unit
    int left = 0, unit_bytes;
    int layer = 0, product = -1;

    // Whether the ring's place is wanted for other things: behind Q, K and V, and behind a layer.
    DEVICE bool is_pause() const {
        return attends(p) && (product == QKV || (product == DOWN && layer + 1 < p.cut.num_layers));
    }
    DEVICE void find_next(bool goes_on) {
#pragma unroll 1
        for (; product < HEAD; goes_on = false) {
            if (!goes_on && is_pause()) return;
            if (product == DOWN && layer + 1 < p.cut.num_layers)
                layer++, product = QKV;
            else
                product++;
            u32 item[2];  // its first unit, and how many
            load_words<2>(item, items + product * (int)sizeof(WarpItem));
            if (!item[1]) continue;
            unit_bytes = unit_bytes_of(p.format(layer, product)), left = item[1];
            next = p.packed(layer, product) + (u64)item[0] * unit_bytes + threadIdx.x % 32 * 16;
            return;
        }
    }

   public:
    DEVICE UnitFeed(const StreamedLayersParams& p, const WarpItem* items) : p(p), items(shared_address(items)) {}
    DEVICE static bool attends(const StreamedLayersParams& p) { return blockIdx.x >= p.cut.attention_block; }

    DEVICE void go_on() { find_next(true); }
    // A unit to the place `to`, or nothing; either is a group of copies.
    DEVICE void copy(u32 to) {
        if (left > 0) {
            const int lane = threadIdx.x % 32;
            to += lane * 16;
#pragma unroll
            for (int i = 0; i < UNIT_VECTORS; i++) {
                if ((i + 1) * 512 <= Layout<Q4_K>::unit_bytes)  // those of all formats
                    copy_words<16>(to + i * 512, next + i * 512);
                else
                    copy_if(i * 512 + lane * 16 < unit_bytes, to + i * 512, next + i * 512);
            }
            next += 4 * unit_bytes;
            if (--left == 0) find_next(false);
        }
        copy_commit();
    }
};

// A unit's scales: of the four lanes that share two rows each finds those of one chunk, and the others read them.
template <int F>
struct UnitScales {
    static constexpr int num_words = Scales<F>::num_words, chunk_bytes = 8 * 4 * num_words + 32;
    static_assert(num_words == 4 && 4 * chunk_bytes <= WARP_SCALE_BYTES, "a quad for two rows; each chunk's banks");

    DEVICE static void store(u32 rows, int chunk, const u32 (&word)[num_words]) {
        store_words<4>(rows + chunk * chunk_bytes, word);
    }
    DEVICE static void load(u32 rows, int chunk, u32 (&word)[num_words]) {
        load_words<4>(word, rows + chunk * chunk_bytes);
    }
};

// A product's first chunks as the tensor core's A operands, for their four steps of 16 columns: unpacked before what
// they multiply is there.
using ReadyChunks = u32[READY_STREAM_CHUNKS][4][4];

// A chunk of x is 32 words of two columns, of which a lane multiplies eight: in shared memory these lie together.
DEVICE u32 x_place(int word) {
    const int chunk = word / 32, step = word / 8 % 4, half = word / 4 % 2;
    return (chunk * 32 + word % 4 * 8 + step * 2 + half) * 4;
}
DEVICE u32 x_lane() { return threadIdx.x % 4 * 32; }

DEVICE void multiply_chunk(float (&acc)[4], const u32 (&a)[4][4], u32 x) {
    u32 b[2][4];
    load_words<4>(b[0], x), load_words<4>(b[1], x + 16);
#pragma unroll
    for (int s = 0; s < 4; s++) mma_16x8x16(acc, a[s], b[s >> 1][2 * (s & 1)], b[s >> 1][2 * (s & 1) + 1]);
}

// What a warp multiplies: the units of its ring in turn.
class UnitRing {
    UnitFeed feed;
    u32 ring, end, slot;
    u32 scales;  // of this lane's two rows, in the first chunk

    // Waits for the next unit, and finds its scales.
    template <int F>
    DEVICE void begin() {
        using L = Layout<F>;
        const int lane = threadIdx.x % 32, own = lane % UNIT_CHUNKS;
        copy_wait<RING_UNITS - 1>();
        __syncwarp();
        Raw<F> raw;  // of which there are the scales of chunk `own`
        load_words<L::scale_bytes / 32>(raw.scale,
                                        slot + L::scale_at + own * L::scale_bytes + (lane >> 2) * (L::scale_bytes / 8));
        load_words<L::super_bytes / 32>(raw.super, slot + L::super_at + (lane >> 2) * (L::super_bytes / 8));
        u32 word[UnitScales<F>::num_words];
        Scales<F>::find(raw, RowFactors<L::scaling>(RowBase{}), word);
        UnitScales<F>::store(scales, own, word);
    }
    template <int F>
    DEVICE void load(Raw<F>& raw, int sub) const {
        using L = Layout<F>;
        const int lane = threadIdx.x % 32;
        load_words<4>(raw.code, slot + sub * L::code_bytes + lane * 16);
        if constexpr (L::high_bytes)
            load_words<L::high_bytes / 128>(raw.high,
                                            slot + L::high_at + sub * L::high_bytes + lane * (L::high_bytes / 32));
    }
    // All lanes have read the unit, and left its scales.
    DEVICE void release() {
        __syncwarp();
        const u32 read = slot;
        slot += SLOT_BYTES;
        if (slot == end) slot = ring;
        feed.copy(read);
        if (ring + SLOT_BYTES == end)  // of one unit: see `fill`
#pragma unroll
            for (int i = 1; i < RING_UNITS; i++) copy_commit();
    }
    template <int F>
    DEVICE void unpack(u32 (&a)[4][4], const Raw<F>& raw, int sub) const {
        u32 word[UnitScales<F>::num_words];
        UnitScales<F>::load(scales, sub, word);
        const Scales<F> found(word);
#pragma unroll
        for (int s = 0; s < 4; s++) fragment_of<F>(raw, found, s, a[s]);
    }
    template <int F>
    DEVICE void make_ready(ReadyChunks& ready) {
        begin<F>();
        __syncwarp();
#pragma unroll
        for (int sub = 0; sub < READY_STREAM_CHUNKS; sub++) {
            Raw<F> raw;
            load(raw, sub);
            unpack(ready[sub], raw, sub);
        }
    }
    // What of a unit comes from chunk FIRST on.
    template <int F, int FIRST>
    DEVICE void multiply_unit(float (&acc)[4], u32 x) {
        Raw<F> raw[UNIT_CHUNKS];
#pragma unroll
        for (int sub = FIRST; sub < UNIT_CHUNKS; sub++) load(raw[sub], sub);
        release();
#pragma unroll
        for (int sub = FIRST; sub < UNIT_CHUNKS; sub++) {
            u32 a[4][4];
            unpack(a, raw[sub], sub);
            multiply_chunk(acc, a, x + sub * 128);
        }
    }
    template <int F>
    DEVICE void multiply(float (&acc)[4], const ReadyChunks& ready, int count, u32 x) {
#pragma unroll
        for (int sub = 0; sub < READY_STREAM_CHUNKS; sub++) multiply_chunk(acc, ready[sub], x + sub * 128);
        multiply_unit<F, READY_STREAM_CHUNKS>(acc, x);
#pragma unroll 1
        while (--count > 0) {
            x += UNIT_CHUNKS * 128;
            begin<F>();
            multiply_unit<F, 0>(acc, x);
        }
    }

   public:
    DEVICE UnitRing(const StreamedLayersParams& p, const WarpItem* items, u32 scales)
        : feed(p, items), scales(scales + threadIdx.x % 32 / 4 * 16) {}

    // Goes on, with a ring of RING_UNITS units, or of one: then a unit is RING_UNITS groups of copies.
    DEVICE void fill(u32 place, int size) {
        slot = ring = place, end = place + size * SLOT_BYTES;
        feed.go_on();
#pragma unroll
        for (int i = 0; i < RING_UNITS; i++) {
            if (i < size)
                feed.copy(place + i * SLOT_BYTES);
            else
                copy_commit();
        }
    }
    // To be called before what the units multiply is waited for.
    DEVICE void make_ready(ReadyChunks& ready, int format, bool exists) {
        if (!exists)  // were they not defined, their registers would be taken all the way round the layers
#pragma unroll
            for (int i = 0; i < READY_STREAM_CHUNKS * 16; i++) ready[i / 16][i / 4 % 4][i % 4] = 0;
        else if (format == Q4_K)
            make_ready<Q4_K>(ready);
        else if (format == Q5_K)
            make_ready<Q5_K>(ready);
        else
            make_ready<Q6_K>(ready);
#pragma unroll
        for (int i = 0; i < READY_STREAM_CHUNKS * 16; i++) compute_now(ready[i / 16][i / 4 % 4][i % 4]);
    }
    // acc += `count` units, of which some is ready, times x.
    DEVICE void multiply(float (&acc)[4], const ReadyChunks& ready, int format, int count, u32 x) {
        if (format == Q4_K)
            multiply<Q4_K>(acc, ready, count, x);
        else if (format == Q5_K)
            multiply<Q5_K>(acc, ready, count, x);
        else
            multiply<Q6_K>(acc, ready, count, x);
    }
};

// ---- a block

struct BlockScratch {
    alignas(16) i32 tiles[NUM_PRODUCTS][2];  // the block's `BlockTiles`: finding them takes long
    alignas(16) WarpItem items[STREAM_WARPS][NUM_PRODUCTS];
    alignas(16) i32 steps[STREAM_WARPS][2];  // the layer and the product at which a warp is
    u64 ranks[STREAM_WARPS];                 // of the largest logits of each warp
    float norm_sums[NORM_PARTITIONS];
    float residuals[MAX_BLOCK_TILES][16];  // of the rows of tiles that the block finishes
    float sums[MAX_STREAMED_SUMS];
    alignas(16) float cosines[HEAD_DIM / 2], sines[HEAD_DIM / 2];
    float query_factor;
    i32 position, slot;                             // of the token, where a block attends
    alignas(16) u8 normed[MAX_STREAMED_WIDTH * 2];  // what Q, K and V, gates, and the head multiply
    alignas(16) u8 scales[STREAM_WARPS][WARP_SCALE_BYTES];
    // From here on it is attention's, where a block attends, but for gates and the down projection.
    alignas(16) u8 branch[MAX_STREAMED_INPUTS * 2];  // what output and down projections multiply
    alignas(16) u8 ring[STREAM_WARPS][RING_UNITS][SLOT_BYTES];
};

static_assert(sizeof(BlockScratch) - sizeof(BlockScratch::branch) - sizeof(BlockScratch::ring) <= FIXED_STREAM_BYTES,
              "as StreamedLayersCut has it");

// Where a warp is. Kept in registers it would be in local memory while units are multiplied, which comes by way of the
// L2 cache: beside so much shared memory there is little L1 cache.
struct WarpStep {
    const u32 place;

    DEVICE explicit WarpStep(BlockScratch& scratch) : place(shared_address(scratch.steps[threadIdx.x / 32])) {}
    DEVICE int layer() const { return load(0); }
    DEVICE int product() const { return load(4); }
    DEVICE void set(int layer, int product) const {
        const u32 step[2] = {(u32)layer, (u32)product};
        store_words<2>(place, step);
    }

   private:
    DEVICE int load(int at) const {
        u32 value;
        load_words<1>(&value, place + at);
        return value;
    }
};

enum StreamedBarrier { NORM_BARRIER = 1, BLOCK_BARRIER, SUMS_BARRIER };
DEVICE void sync_block() { sync_warps(BLOCK_BARRIER, STREAM_WARPS); }
