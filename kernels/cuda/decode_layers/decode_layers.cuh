// What the blocks of decode_layers share: what they are given, and the words by which they exchange activations.
#pragma once
#include "../attention/attention_merge.cuh"
#include "../attention/attention_rope.cuh"
#include "../decode_step/decode_rows.cuh"
#include "../rope/rope_angles.cuh"
#include "../sampling/sampling_rank.cuh"

static_assert(TOKENS == 1 || TOKENS == 2 || TOKENS == 4 || TOKENS == 8, "each of a sequence of its own");

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
    i32 num_layers, width;
    i32 gate_tiles;       // of a block
    i32 qkv_block;        // the first block with a tile of Q, K and V
    i32 attention_block;  // the first with a KV head
    i32 scratch_at;       // in shared memory
    i32 fragments_at;     // of the down projection, in shared memory
    float epsilon, inverse_width;
};

// The tokens' rows.
struct LayersRows {
    i32 *token_ids, *positions, *slots;       // [TOKENS]
    i32 *context_lengths, *sequence_lengths;  // [TOKENS]
    // [TOKENS], or null. If there are some, the arrays are those of the step before, which drew the head's `ids`, and
    // the kernel begins with what decode_step_begin does where there are no updates.
    i64* output_positions;
};

// What the first layer's residual stream is made of.
struct LayersEmbedding {
    const u8* packed;
    i32 format, num_rows, num_units;
    float scale;
};

// Where in a layer's words those of the first token are, and how many each token has: of Q, K and V, of what attention
// gives, of the residual stream after that, of the activated gates, of the residual stream that goes into the next
// layer.
struct WordPlaces {
    u32 first_layer;  // behind the embeddings, which are as the end of a layer
    u32 layer_words;
    u32 qkv_words, attended_words, activated_words, middle_words, end_words;
    u32 attended_at, middle_at, activated_at, end_at;
    u32 stream_at;  // behind all layers: [TOKENS, width], the residual stream after them if there is no head
    u32 ranks_at;   // then: [TOKENS, blocks of products, 2] of the largest logits
};

// The output head, or none: then its pointers are null.
struct LayersHead {
    const u8* packed;
    const float* norm;  // [width]
    const i32* rows;    // [TOKENS] of the residual stream
    float* logits;      // [TOKENS, num_rows]
    i32* ids;           // [TOKENS] gets those of the largest logits; or null
    i32* host_ids;      // [TOKENS] the same, in page-locked host memory; or null
    i32 num_tiles, num_chunks, num_rows;
};

struct DecodeLayersParams {
    AttentionParams attention;  // `qkv`, `cache`, `work` and `out` are not used
    RopeParams rope;            // its pointers are null
    AngleParams angles;
    LayersRows rows;
    LayersEmbedding embedding;
    // EMPTY: those of embeddings, [num_layers, places.layer_words], and what `places` has behind them. If there is a
    // head they are so again when the kernel ends.
    u32* words;
    WordPlaces places;
    DecodeProduct qkv, output, gate_up, down;
    LayerCut cut;
    LayersHead head;
    DecodeLayer layers[MAX_LAYERS];
};

// ---- rows: what they are now. Nobody writes them before all blocks have been through all layers.

DEVICE bool goes_on(const DecodeLayersParams& p, int token) {
    return p.rows.output_positions && p.rows.positions[token] >= 0;
}

// ---- words. One holds a float32 or two float16, and is EMPTY until it is published: a NaN that no arithmetic gives.
// It is there as a whole or not at all and says nothing about other memory, so nothing has to be ordered.

// Words are in sectors of the L2 cache, of which some lie as many apart as a line has: then only one block writes to a
// line, for which others wait. That pays where these look at few lines: SPREADS of decode_layers_params.py.
constexpr u32 SECTOR_WORDS = 8;

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
DEVICE uint2 load_pair(const u32* from) {
    uint2 pair;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(pair.x), "=r"(pair.y) : "l"(from) : "memory");
    return pair;
}
DEVICE bool has_come(uint2 pair) { return pair.x != EMPTY && pair.y != EMPTY; }
DEVICE bool has_come(uint4 quad) { return quad.x != EMPTY && quad.y != EMPTY && quad.z != EMPTY && quad.w != EMPTY; }

DEVICE void publish(u32* to, u32 word) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}
DEVICE void publish(u32* to, u32 word, u32 next) {
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(word), "r"(next) : "memory");
}

// A quad is nobody's any more.
DEVICE void make_empty(u32* quad) {
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(quad), "r"(EMPTY) : "memory");
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

// Which of all words is number `i` of a token's. They are numbers and not addresses, as a place that is found between a
// sum and its publication delays all other blocks: finding one takes few instructions, and it is kept in one register.
struct LayerWords {
    const DecodeLayersParams& p;
    u32 first;

    // Layer -1: only its end, the embeddings.
    DEVICE LayerWords(const DecodeLayersParams& p, int layer)
        : p(p), first(p.places.first_layer + layer * p.places.layer_words) {}
    DEVICE u32 qkv(int token, int i) const { return first + token * p.places.qkv_words + spread<QKV_SPREAD>(i); }
    DEVICE u32 attended(int token, int i) const {
        return first + p.places.attended_at + token * p.places.attended_words + i;
    }
    DEVICE u32 middle(int token, int i) const { return first + p.places.middle_at + in_middle(token, i); }
    DEVICE u32 activated(int token, int i) const {
        return first + p.places.activated_at + token * p.places.activated_words + i;
    }
    DEVICE u32 end(int token, int i) const { return first + p.places.end_at + in_end(token, i); }
    // Of the residual stream's words.
    DEVICE u32 in_middle(int token, int i) const { return token * p.places.middle_words + spread<MIDDLE_SPREAD>(i); }
    DEVICE u32 in_end(int token, int i) const { return token * p.places.end_words + spread<END_SPREAD>(i); }

   private:
    template <int SPREAD>
    DEVICE static u32 spread(u32 i) {
        return SPREAD == 1 ? i : i / SECTOR_WORDS * (SECTOR_WORDS * SPREAD) + i % SECTOR_WORDS;
    }
};

// Where the rank of a block's largest logit of a token is: its bits, and its id. Neither is EMPTY.
DEVICE u32* rank_place(const DecodeLayersParams& p, int token, int block) {
    return p.words + p.places.ranks_at + 2 * (token * p.cut.attention_block + block);
}
constexpr u64 NO_RANK = 0xFFFFFFFFu;  // `rank_of(0, 0)`: lower than any logit's

// ---- barriers of some warps of a block

DEVICE void sync_warps(int barrier, int num_warps) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(num_warps * 32) : "memory");
}
DEVICE void arrive_warps(int barrier, int num_warps) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(num_warps * 32) : "memory");
}
