// What the blocks of decode_layers share: what they are given, and the words by which they exchange activations.
#pragma once
#include "../attention/attention_merge.cuh"
#include "../attention/attention_rope.cuh"
#include "../rope/rope_angles.cuh"
#include "layer_rows.cuh"

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

    DEVICE int num_rank_blocks() const { return cut.attention_block; }
};

// Words are in sectors of the L2 cache, of which some lie as many apart as a line has: then only one block writes to a
// line, for which others wait. That pays where these look at few lines: SPREADS of decode_layers_params.py.
constexpr u32 SECTOR_WORDS = 8;

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
