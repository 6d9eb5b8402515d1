// How attention is cut into items of work; shared by the kernel that lists them and the kernels that do them.
//
// The key axis of a sequence is cut at absolute multiples of TILE_KEYS into tiles and of SPLIT_TILES tiles into KV
// splits. Softmax partial results (m, l, o) are made per tile, tiles are merged left to right within their split,
// splits left to right. Who computes what never changes this order, so a token's result has the same bits however the
// work is spread.
//
// The query rows of a sequence for one KV head are its (token, head in group) pairs, token after token.
#pragma once
#include "../common/common.cuh"

constexpr int SPLIT_TILES = 4;

// Rows of one sequence and tiles of its keys; every KV head has the same items.
struct alignas(16) Item {
    i32 sequence;        // row of block_tables
    i32 first_token;     // the sequence's first token in the step
    i32 first_position;  // and the position of that token
    i32 first_row;       // first query row of the item
    i32 num_rows;
    i32 num_keys;    // keys that the cache holds of the sequence
    i32 first_tile;  // tiles to walk: those that hold a key which some row sees
    i32 end_tile;
    i32 num_items;    // among which these rows' KV splits are divided; 1: no others, no workspace
    i32 first_split;  // divided: the rows' KV splits, of all these items
    i32 end_split;
    i32 partial_row;  // the workspace row of query row r and a split is partial_row + split * num_rows + r
    i32 arrivals;     // index of the counter of items that are done
    i32 unused[3];
};

struct PlanCounts {
    i32 decode_items;
    i32 prefill_items;
    i32 tokens;  // without padding
    i32 unused;
};
