// What the blocks of decode_layers share: what they are given, and the words by which they exchange activations.
#pragma once
#include "../attention/attention_merge.cuh"
#include "../attention/attention_rope.cuh"

static_assert(TOKENS == 1 || TOKENS == 2 || TOKENS == 4, "each of a sequence of its own");

struct DecodeLayer {
    const u8 *qkv, *output, *gate_up, *down;  // packed
    const float* qkv_bias;                    // [rows of qkv] or null
    const float *attention_norm, *ffn_norm;   // [width]
    LayerCacheParams cache;
    i32 qkv_format, output_format, gate_up_format, down_format;
};

// How a product is cut, in every layer: into the split-K partitions of all other kernels.
struct DecodeProduct {
    i32 num_tiles;  // of 16 rows
    i32 num_chunks, num_partitions;
    i32 reciprocal;  // ceil(2^16 / num_partitions): dividing takes long
    i32 buffer_at;   // where in shared memory a block has its weights

    // partition * num_chunks / num_partitions
    DEVICE int first_chunk(int partition) const { return (u32)(partition * num_chunks * reciprocal) >> 16; }
};

// Which block does what.
struct LayerCut {
    i32 num_layers, layer_words, width;
    i32 gate_tiles;       // of a block
    i32 qkv_block;        // the first block with a tile of Q, K and V
    i32 attention_block;  // the first with a KV head
    i32 scratch_at;       // in shared memory
    i32 fragments_at;     // of the down projection, in shared memory
    float epsilon, inverse_width;
};

struct DecodeLayersParams {
    AttentionParams attention;  // `qkv`, `cache`, `work` and `out` are not used
    RopeParams rope;
    const i32* slots;  // [TOKENS]
    float* x;          // [TOKENS, width] the residual stream, in and out
    u32* words;        // [num_layers, layer_words] EMPTY
    DecodeProduct qkv, output, gate_up, down;
    LayerCut cut;
    DecodeLayer layers[MAX_LAYERS];
};

// ---- words. One holds a float32 or two float16, and is EMPTY until it is published: a NaN that no arithmetic gives.
// It is there as a whole or not at all and says nothing about other memory, so nothing has to be ordered.

constexpr u32 EMPTY = 0xFFFFFFFFu;
constexpr int MAX_POLLS = 1 << 21;  // of a second and more: a block is missing, and the kernel fails rather than hangs

DEVICE u32 load_word(const u32* from) {
    u32 word;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
    return word;
}
DEVICE uint4 load_quad(const u32* from) {
    uint4 quad;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(quad.x), "=r"(quad.y), "=r"(quad.z), "=r"(quad.w)
                 : "l"(from)
                 : "memory");
    return quad;
}
DEVICE bool has_come(uint4 quad) { return quad.x != EMPTY && quad.y != EMPTY && quad.z != EMPTY && quad.w != EMPTY; }

DEVICE void publish(u32* to, u32 word) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}

// Calls load(i) for i < COUNT, together, until has_come(i) of all.
template <int COUNT, typename Load, typename HasCome>
DEVICE void await(Load load, HasCome has_come) {
#pragma unroll 1
    for (int poll = 0; poll < MAX_POLLS; poll++) {
        bool all = true;
#pragma unroll
        for (int i = 0; i < COUNT; i++) load(i);
#pragma unroll
        for (int i = 0; i < COUNT; i++) all = all && has_come(i);
        if (all) return;
    }
    __trap();
}
DEVICE u32 await_word(const u32* from) {
    u32 word;
    await<1>([&](int) { word = load_word(from); }, [&](int) { return word != EMPTY; });
    return word;
}
template <int COUNT>
DEVICE void await_quads(uint4 (&quads)[COUNT], const u32* const (&from)[COUNT]) {
    await<COUNT>([&](int i) { quads[i] = load_quad(from[i]); }, [&](int i) { return has_come(quads[i]); });
}

// Where the words of a layer are, of each token: of Q, K and V, of what attention gives, of the residual stream after
// that, of the activated gates, of the residual stream that goes into the next layer.
struct LayerWords {
    const DecodeLayersParams& p;
    u32* words;

    DEVICE LayerWords(const DecodeLayersParams& p, int layer) : p(p), words(p.words + layer * p.cut.layer_words) {}
    DEVICE int qkv_words() const { return p.qkv.num_tiles * 8; }
    DEVICE int attended_words() const { return p.output.num_chunks * 32; }
    DEVICE int activated_words() const { return p.down.num_chunks * 32; }
    DEVICE u32* qkv(int token) const { return words + token * qkv_words(); }
    DEVICE u32* attended(int token) const { return qkv(TOKENS) + token * attended_words(); }
    DEVICE u32* middle(int token) const { return attended(TOKENS) + token * p.cut.width; }
    DEVICE u32* activated(int token) const { return middle(TOKENS) + token * activated_words(); }
    DEVICE u32* end(int token) const { return activated(TOKENS) + token * p.cut.width; }
};

// ---- barriers of some warps of a block

DEVICE void sync_warps(int barrier, int num_warps) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(num_warps * 32) : "memory");
}
DEVICE void arrive_warps(int barrier, int num_warps) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(num_warps * 32) : "memory");
}
