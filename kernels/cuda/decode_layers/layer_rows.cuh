// The rows of the tokens of a kernel that does a whole step: what it begins with, and how it goes on with what it
// draws.
#pragma once
#include "../decode_step/decode_rows.cuh"
#include "../sampling/sampling_rank.cuh"
#include "layer_words.cuh"

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

// As `Epilogue` of matmul_epilogue.cuh has it.
DEVICE float swiglu(float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; }

// ---- What follows is for parameters `p` of such a kernel: with `rows`, `head`, `words` and `places.ranks_at`.

// Whether the step's arrays are still those of the step before. Nobody writes them before all blocks have been through
// all layers.
template <typename Params>
DEVICE bool goes_on(const Params& p, int token) {
    return p.rows.output_positions && p.rows.positions[token] >= 0;
}

// A row's token.
template <typename Params>
DEVICE int table_row(const Params& p, int token) {
    const i32 id = p.rows.token_ids[token], drawn = p.rows.output_positions ? p.head.ids[token] : 0;
    return min(usable(goes_on(p, token) ? drawn : id), p.embedding.num_rows - 1);
}

// Where the rank of a block's largest logit of a token is: its bits, and its id. Neither is EMPTY.
template <typename Params>
DEVICE u32* rank_place(const Params& p, int token, int block) {
    return p.words + p.places.ranks_at + 2 * (token * p.num_rank_blocks() + block);
}
constexpr u64 NO_RANK = 0xFFFFFFFFu;  // `rank_of(0, 0)`: lower than any logit's

// A warp finishes a row once all blocks have its logits: the id of the largest, and no word of the row is anybody's any
// more. `empty_stream` empties those of the residual stream.
template <typename Params, typename EmptyStream>
DEVICE void finish_row(const Params& p, int token, i32 position, i32 slot, EmptyStream empty_stream) {
    constexpr int AT_ONCE = 5;
    const int lane = threadIdx.x % 32, num_blocks = p.num_rank_blocks();
    u64 rank = NO_RANK;
#pragma unroll 1
    for (int first = lane; first < num_blocks; first += AT_ONCE * 32) {
        uint2 pairs[AT_ONCE];
        await<AT_ONCE>([&](int i) { pairs[i] = load_pair(rank_place(p, token, min(first + i * 32, num_blocks - 1))); },
                       [&](int i) { return has_come(pairs[i]); });
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) rank = larger(rank, rank_of(pairs[i].x, pairs[i].y));
    }
    __syncwarp();
    const int id = greedy_id(warp_largest(rank));
    if (lane == 0 && goes_on(p, token)) {
        p.rows.token_ids[token] = usable(p.head.ids[token]);
        p.rows.positions[token] = position;
        p.rows.slots[token] = slot;
        p.rows.context_lengths[token]++;
        p.rows.sequence_lengths[token]++;
        p.rows.output_positions[token]++;
    }
    if (p.head.ids && lane == 0) {
        p.head.ids[token] = id;
        if (p.head.host_ids) p.head.host_ids[token] = id;
    }
    empty_stream();
    for (int block = lane; block < num_blocks; block += 32) publish(rank_place(p, token, block), EMPTY, EMPTY);
}
