// How attention is cut into pieces of work; shared by the kernel that lists them and the kernels that do them.
//
// The key axis of a sequence is cut at absolute multiples of UNIT_KEYS into units and of SPAN_UNITS units into spans.
// Softmax partial results (m, l, o) are made per unit, units are merged left to right within their span, spans left to
// right. Who computes what never changes this order, so a token's result has the same bits however the work is spread.
//
// The query rows of a sequence for one KV head are its (token, head in group) pairs, token after token.
#pragma once
#include "../common/common.cuh"

constexpr int UNIT_KEYS = 64;
constexpr int SPAN_UNITS = 4;
constexpr int DECODE_ROWS = 16;  // query rows of a decode item: one tensor core tile

// Rows of one sequence and units of its keys; every KV head has the same items.
struct alignas(16) Item {
    i32 sequence;        // row of block_tables
    i32 first_token;     // the sequence's first token in the step
    i32 first_position;  // and the position of that token
    i32 first_row;       // first query row of the item
    i32 num_rows;
    i32 num_keys;    // keys that the cache holds of the sequence
    i32 first_unit;  // units to walk: those that hold a key which some row sees
    i32 end_unit;
    i32 num_parts;   // items among which these rows' spans are split; 1: not split, no workspace
    i32 first_span;  // split items: the rows' spans, over all parts
    i32 end_span;
    i32 partial_row;  // the workspace row of query row r and a span is partial_row + span * num_rows + r
    i32 arrivals;     // index of the counter of parts that are done
    i32 unused[3];
};

struct PlanCounts {
    i32 decode_items;
    i32 prefill_items;
    i32 tokens;  // without padding
    i32 unused;
};
