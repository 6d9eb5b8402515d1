// How attention is cut into items of work; shared by the kernel that lists them and the kernels that do them.
//
// The key axis of a sequence is cut at absolute multiples of TILE_KEYS into tiles and of SPLIT_TILES tiles into KV
// splits. Softmax partial results (m, l, o) are made per tile, tiles are merged left to right within their split,
// splits left to right. Who computes what never changes this order, so a token's result has the same bits however the
// work is spread.
//
// The query rows of a sequence for one KV head are its (token, head in group) pairs, token after token.
//
// Sequences of one token that begin with the same blocks may be a prefix group: attention_prefix.cu attends to the
// tiles that they share for all of them at once, and leaves what it merged of each row in the workspace. The items of a
// member go on from there.
#pragma once
#include "../common/common.cuh"

constexpr int SPLIT_TILES = 4;

// Partial results over shared tiles: for each row some over whole KV splits, in their order, and then the open one,
// over the tiles of the next KV split, of which there may be none.
struct PrefixStates {
    i32 row;  // the workspace row of state s of an item's query row r is row + s * stride + r
    i32 stride;
    i32 num_closed;  // partial results before the open one; 0: the item is of no group
};

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
    PrefixStates prefix;
};

// Rows of a prefix group and tiles that its members share. Its query rows for one KV head are (member, head in group)
// pairs, member after member.
struct alignas(16) PrefixItem {
    i32 first_member;  // of the group
    i32 sequence;      // one of its members
    i32 first_row;
    i32 num_rows;
    i32 first_tile;
    i32 end_tile;
    PrefixStates states;
    i32 first_state;  // of the KV split that `first_tile` begins; items that begin with tile 0 merge all theirs into
                      // one
    i32 open_state;   // of the KV split that the group's tiles end in, or -1: other items have it
    i32 unused;
};

struct PlanCounts {
    i32 decode_items;
    i32 prefill_items;
    i32 tokens;  // without padding
    i32 prefix_items;
    i32 prefill_counter;  // of work that blocks of attention_prefill_hopper have taken, 0 before and after
    i32 prefill_sms;      // that these are on: attention_decode, which overlaps them, begins on the others
};
