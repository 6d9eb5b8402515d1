// The partial results of decode work: merged by threads, exchanged between the warps of a block in shared memory, and
// kept in the workspace between blocks.
#pragma once
#include "attention_swapped.cuh"

constexpr int DECODE_THREADS = DECODE_WARPS * 32;
constexpr int ROW_THREADS = DECODE_THREADS / BLOCK_ROWS;  // threads that merge a row's partial results
constexpr int THREAD_QUADS = (HEAD_DIM / 4 + ROW_THREADS - 1) / ROW_THREADS;
// Floats: so that what `put` stores at once lies on different banks.
constexpr int EXCHANGE_ROW = HEAD_DIM + (BLOCK_ROWS == 8 ? 4 : 8);
static_assert(SPLIT_TILES % DECODE_WARPS == 0, "rounds that begin at a multiple of the warps cross no splits");

// A thread's slice of a row's partial result: 4 elements from each of `column(0)`, `column(1)` ...
struct Slice {
    float m, l;
    float4 o[THREAD_QUADS];
};

DEVICE int slice_row() { return threadIdx.x % DECODE_THREADS / ROW_THREADS; }
DEVICE int slice_column(int quad) { return (quad * ROW_THREADS + threadIdx.x % ROW_THREADS) * 4; }

DEVICE void clear(Slice& slice) {
    slice.m = NEGATIVE_INFINITY, slice.l = 0.0f;
#pragma unroll
    for (int q = 0; q < THREAD_QUADS; q++) slice.o[q] = {0.0f, 0.0f, 0.0f, 0.0f};
}

DEVICE void merge(Slice& slice, const Slice& other) {
    float keep, add;
    slice.m = merge_weights(slice.m, other.m, keep, add);
    slice.l = merged(slice.l, keep, other.l, add);
#pragma unroll
    for (int q = 0; q < THREAD_QUADS; q++) {
        float4 &o = slice.o[q], x = other.o[q];
        o = {merged(o.x, keep, x.x, add), merged(o.y, keep, x.y, add), merged(o.z, keep, x.z, add),
             merged(o.w, keep, x.w, add)};
    }
}

// The same bits as of merging into a cleared one.
DEVICE void begin(Slice& slice, const Slice& other) {
    slice.m = other.m, slice.l = __fadd_rn(other.l, 0.0f);
#pragma unroll
    for (int q = 0; q < THREAD_QUADS; q++) {
        const float4 x = other.o[q];
        slice.o[q] = {__fadd_rn(x.x, 0.0f), __fadd_rn(x.y, 0.0f), __fadd_rn(x.z, 0.0f), __fadd_rn(x.w, 0.0f)};
    }
}

// Shared memory of a decode block.
struct Exchange {
    float o[DECODE_WARPS][BLOCK_ROWS][EXCHANGE_ROW];
    float2 sums[DECODE_WARPS][BLOCK_ROWS];  // (m, l)
};
DEVICE Exchange& exchange_at(u8* shared) { return *(Exchange*)(shared + 2 * DECODE_WARPS * TILE_BYTES); }
DEVICE u8* new_rows_at(u8* shared) { return (u8*)(&exchange_at(shared) + 1); }

DEVICE void put(Exchange& exchange, const Partial<1>& partial, i32 num_rows) {
    const int warp = threadIdx.x / 32 % DECODE_WARPS, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (8 * half >= num_rows) break;
        const int row = 8 * half + g;
        if (row >= num_rows) continue;
        if (t == 0) exchange.sums[warp][row] = {partial.m[0][half], partial.l[0][half]};
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++)
            *(float2*)&exchange.o[warp][row][8 * n + 2 * t] = {partial.o[0][n][2 * half],
                                                               partial.o[0][n][2 * half + 1]};
    }
}

DEVICE void put(Exchange& exchange, const SwappedPartial& partial, i32 num_rows) {
    const int warp = threadIdx.x / 32 % DECODE_WARPS, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int row = 2 * t + e;
        if (row >= num_rows) continue;
        if (g == 0) exchange.sums[warp][row] = {partial.m[e], partial.l[e]};
#pragma unroll
        for (int d = 0; d < CHUNKS; d++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                exchange.o[warp][row][16 * d + 8 * half + g] = partial.o[d][2 * half + e];
    }
}

DEVICE void get(Slice& slice, const Exchange& exchange, int warp) {
    const int row = slice_row();
    const float2 sums = exchange.sums[warp][row];
    slice.m = sums.x, slice.l = sums.y;
#pragma unroll
    for (int q = 0; q < THREAD_QUADS; q++)
        if (slice_column(q) < HEAD_DIM) slice.o[q] = *(const float4*)&exchange.o[warp][row][slice_column(q)];
}

// ---- the workspace of divided items

DEVICE void store(const AttentionParams& p, i64 partial_row, const Slice& slice) {
#pragma unroll
    for (int q = 0; q < THREAD_QUADS; q++)
        if (slice_column(q) < HEAD_DIM)
            *(float4*)(p.work.partial_outputs + partial_row * HEAD_DIM + slice_column(q)) = slice.o[q];
    if (slice_column(0) == 0) p.work.partial_sums[partial_row] = {slice.m, slice.l};
}

DEVICE void load(Slice& slice, const AttentionParams& p, i64 partial_row) {
    const float2 sums = load_shared_result(p.work.partial_sums + partial_row);
    slice.m = sums.x, slice.l = sums.y;
#pragma unroll
    for (int q = 0; q < THREAD_QUADS; q++)
        if (slice_column(q) < HEAD_DIM)
            slice.o[q] =
                load_shared_result((const float4*)(p.work.partial_outputs + partial_row * HEAD_DIM + slice_column(q)));
}

// ---- what a prefix group has left of a row

DEVICE i64 prefix_row(const AttentionParams& p, const Item& item, i32 kv_head, i32 row, i32 state) {
    return (i64)(item.prefix.row + state * item.prefix.stride + row) * p.num_kv_heads + kv_head;
}

// Merges the KV splits before the item's first one.
DEVICE void merge_prefix(Slice& whole, const AttentionParams& p, const Item& item, i32 kv_head, i32 row) {
    constexpr int at_once = THREAD_QUADS <= 2 ? 4 : 2;  // fetched together; merging nothing changes no bit
    for (i32 first = 0; first < item.prefix.num_closed; first += at_once) {
        Slice states[at_once];
#pragma unroll
        for (int i = 0; i < at_once; i++) {
            clear(states[i]);
            if (first + i < item.prefix.num_closed) load(states[i], p, prefix_row(p, item, kv_head, row, first + i));
        }
#pragma unroll
        for (int i = 0; i < at_once; i++) merge(whole, states[i]);
    }
}

// Loads the first tiles of that one.
DEVICE void load_open_split(Slice& split, const AttentionParams& p, const Item& item, i32 kv_head, i32 row) {
    load(split, p, prefix_row(p, item, kv_head, row, item.prefix.num_closed));
}
