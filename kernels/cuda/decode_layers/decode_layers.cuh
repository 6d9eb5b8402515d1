// What the blocks of decode_layers share: what they are given, and the words by which they exchange activations.
#pragma once
#include "../attention/attention_merge.cuh"
#include "../attention/attention_rope.cuh"

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
    i32 buffer_at;  // where in shared memory a block has its weights

    DEVICE int first_chunk(int partition) const { return partition * num_chunks / num_partitions; }
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
    const i32* slots;  // [1]
    float* x;          // [width] the residual stream, in and out
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
DEVICE uint4 await_quad(const u32* from) {
    uint4 quad;
    await<1>([&](int) { quad = load_quad(from); }, [&](int) { return has_come(quad); });
    return quad;
}

// Where the words of a layer are: of Q, K and V, of what attention gives, of the residual stream after that, of the
// activated gates, of the residual stream that goes into the next layer.
struct LayerWords {
    const DecodeLayersParams& p;
    u32* qkv;

    DEVICE LayerWords(const DecodeLayersParams& p, int layer) : p(p), qkv(p.words + layer * p.cut.layer_words) {}
    DEVICE u32* attended() const { return qkv + p.qkv.num_tiles * 8; }
    DEVICE u32* middle() const { return attended() + p.output.num_chunks * 32; }
    DEVICE u32* activated() const { return middle() + p.cut.width; }
    DEVICE u32* end() const { return activated() + p.down.num_chunks * 32; }
};

// ---- barriers of some warps of a block

DEVICE void sync_warps(int barrier, int num_warps) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(num_warps * 32) : "memory");
}
DEVICE void arrive_warps(int barrier, int num_warps) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(num_warps * 32) : "memory");
}
