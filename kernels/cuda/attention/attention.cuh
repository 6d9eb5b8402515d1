// One warp's share of attention: 16 or 32 query rows against the keys of one tile, and how partial results merge.
// Everything that decides a result's bits is here, once, for decode and prefill alike.
#pragma once
#include "../rope/rope.cuh"
#include "attention_params.cuh"

// Rows in shared memory are an odd number of 16-byte chunks apart, so that ldmatrix has no bank conflicts.
constexpr int QUERY_BYTES = HEAD_DIM * 2 + 16;
constexpr int ROW_CHUNKS = HEAD_DIM * ELEMENT_BYTES / 16, ROW_BYTES = (ROW_CHUNKS | 1) * 16;  // of keys and values
constexpr int TILE_BYTES = TILE_KEYS * (ROW_BYTES + SCALE_BYTES);
constexpr int CHUNKS = HEAD_DIM / 16;
// ---- a warp's rows. Lane 4g + t has rows g and g + 8 of each row tile, and of them columns 2t and 2t + 1 of every 8.

template <int ROW_TILES>
struct Rows {
    u32 queries[ROW_TILES][CHUNKS][4];  // A operands
    i32 lowest[ROW_TILES][2];           // first and last key that the row sees
    i32 highest[ROW_TILES][2];
    i32 all_lowest, all_highest;  // every key in all_lowest..all_highest is seen by all rows
    bool any;
    float code_bias[ROW_TILES][2];  // with codes: what products begin with
};

template <int ROW_TILES>
DEVICE void find_code_bias(Rows<ROW_TILES>& rows) {
    if constexpr (IS_Q8) {
#pragma unroll
        for (int row_tile = 0; row_tile < ROW_TILES; row_tile++) {
            float sums[4] = {};
#pragma unroll
            for (int k = 0; k < CHUNKS; k++) mma_16x8x16(sums, rows.queries[row_tile][k], HALF2_ONES, HALF2_ONES);
#pragma unroll
            for (int half = 0; half < 2; half++) rows.code_bias[row_tile][half] = __fmul_rn(sums[2 * half], CODE_BIAS);
        }
    }
}

// The weights of one tile's keys.
template <int ROW_TILES>
struct Weights {
    u32 p[ROW_TILES][TILE_GROUPS][4];  // 2^(score - m), A operands
    float m[ROW_TILES][2];
    float code_bias[ROW_TILES][2];  // with codes: what sums of weighted values begin with
};

template <int ROW_TILES>
struct Partial {
    float m[ROW_TILES][2];
    float l[ROW_TILES][2];
    float o[ROW_TILES][HEAD_DIM / 8][4];
};

template <int ROW_TILES>
DEVICE void clear(Partial<ROW_TILES>& partial) {
#pragma unroll
    for (int row_tile = 0; row_tile < ROW_TILES; row_tile++) {
#pragma unroll
        for (int half = 0; half < 2; half++)
            partial.m[row_tile][half] = NEGATIVE_INFINITY, partial.l[row_tile][half] = 0.0f;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) partial.o[row_tile][n][c] = 0.0f;
    }
}

// Rows first..first + 16 * ROW_TILES - 1 of the item; those that it does not have see nothing.
template <int ROW_TILES>
DEVICE void load_rows(Rows<ROW_TILES>& rows, const AttentionParams& p, const Item& item, i32 kv_head, i32 first) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int row_tile = 0; row_tile < ROW_TILES; row_tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const i32 row = first + 16 * row_tile + 8 * half + g;
            const bool valid = row < item.num_rows;
            i32 token, head;
            locate(p, item, kv_head, valid ? row : 0, token, head);
            const i32 position = item.first_position + token;
            rows.lowest[row_tile][half] = valid ? lowest_key(p, position) : 0;
            rows.highest[row_tile][half] = valid ? position : -1;
            const u32* query =
                (const u32*)(p.qkv + (i64)(item.first_token + token) * p.qkv_width + head * HEAD_DIM) + t;
#pragma unroll
            for (int k = 0; k < CHUNKS; k++) {
                rows.queries[row_tile][k][half] = valid ? query[8 * k] : 0;
                rows.queries[row_tile][k][2 + half] = valid ? query[8 * k + 4] : 0;
            }
        }
    find_code_bias(rows);
    rows.any = first < item.num_rows;
    const i32 last = min(first + 16 * ROW_TILES, item.num_rows) - 1;
    rows.all_lowest = lowest_key(p, item.first_position + (item.first_row + last) / p.group);
    rows.all_highest = item.first_position + (item.first_row + first) / p.group;
}

// Walks over a tile's keys: use(chunk, group, B operands of the group's first 8 keys, of its others).
template <typename Use>
DEVICE void for_key_groups(u32 keys, Use use) {
    const int lane = threadIdx.x % 32;
    const u32 address =
        keys + (IS_Q8 ? lane * ROW_BYTES : ((lane & 7) + (lane >> 4 << 3)) * ROW_BYTES + (lane >> 3 & 1) * 16);
    u32 b[4];
#pragma unroll
    for (int k = 0; k < CHUNKS; k++)
#pragma unroll
        for (int n = 0; n < TILE_GROUPS; n++) {
            if (!IS_Q8 || n % 2 == 0) load_matrices(b, address + n * KEY_GROUP * ROW_BYTES + k * (16 * ELEMENT_BYTES));
            if constexpr (IS_Q8) {
                const u32 low = b[n % 2 * 2], high = b[n % 2 * 2 + 1];
                const u32 first[2] = {even_codes(low), odd_codes(low)}, second[2] = {even_codes(high), odd_codes(high)};
                use(k, n, first, second);
            } else
                use(k, n, b, b + 2);
        }
}

// Products of the rows and a tile's keys.
template <int ROW_TILES>
DEVICE void multiply_keys(float (&s)[ROW_TILES][TILE_KEYS / 8][4], const Rows<ROW_TILES>& rows, u32 keys) {
#pragma unroll
    for (int row_tile = 0; row_tile < ROW_TILES; row_tile++)
#pragma unroll
        for (int n = 0; n < TILE_KEYS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) s[row_tile][n][c] = IS_Q8 ? rows.code_bias[row_tile][c >> 1] : 0.0f;
    for_key_groups(keys, [&](int k, int n, const u32* first, const u32* second) {
#pragma unroll
        for (int row_tile = 0; row_tile < ROW_TILES; row_tile++) {
            mma_16x8x16(s[row_tile][2 * n], rows.queries[row_tile][k], first[0], first[1]);
            mma_16x8x16(s[row_tile][2 * n + 1], rows.queries[row_tile][k], second[0], second[1]);
        }
    });
    if constexpr (IS_Q8) {
#pragma unroll
        for (int n = 0; n < TILE_KEYS / 8; n++) {
            const u32 scales = load_scales(keys + TILE_KEYS * ROW_BYTES, n);
#pragma unroll
            for (int row_tile = 0; row_tile < ROW_TILES; row_tile++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    s[row_tile][n][c] = __fmul_rn(s[row_tile][n][c], c & 1 ? high_half(scales) : low_half(scales));
        }
    }
}

// Makes powers of 2 of a tile's scores, the products of its keys with the rows, relative to the largest of each row of
// the tile, which becomes `m`. `halves`: 1 if rows 8..15 of a row tile are not wanted.
template <int ROW_TILES>
DEVICE void raise_scores(float (&s)[ROW_TILES][TILE_KEYS / 8][4], float (&m)[ROW_TILES][2], const Rows<ROW_TILES>& rows,
                         i32 first_key, const AttentionParams& p, int halves) {
    const float scale_log2 = p.scores.scale_log2;
    const int lane = threadIdx.x % 32;
#ifdef SOFTCAP
#pragma unroll
    for (int row_tile = 0; row_tile < ROW_TILES; row_tile++)
#pragma unroll
        for (int n = 0; n < TILE_KEYS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) s[row_tile][n][c] = soft_capped(p, s[row_tile][n][c]);
#endif
    if (first_key < rows.all_lowest || first_key + TILE_KEYS - 1 > rows.all_highest) {
        const i32 column = first_key + 2 * (lane & 3);
#pragma unroll
        for (int row_tile = 0; row_tile < ROW_TILES; row_tile++)
#pragma unroll
            for (int n = 0; n < TILE_KEYS / 8; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    if (ROW_TILES == 1 && c >= 2 * halves) break;
                    const i32 key = column + 8 * n + (c & 1);
                    if (key < rows.lowest[row_tile][c >> 1] || key > rows.highest[row_tile][c >> 1])
                        s[row_tile][n][c] = NEGATIVE_INFINITY;
                }
    }
#pragma unroll
    for (int row_tile = 0; row_tile < ROW_TILES; row_tile++) {
        float reference[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float largest = NEGATIVE_INFINITY;
            if (half < halves) {
                float four[4];  // so that not each waits for the one before
#pragma unroll
                for (int n = 0; n < TILE_KEYS / 8; n++) {
                    const float larger = fmaxf(s[row_tile][n][2 * half], s[row_tile][n][2 * half + 1]);
                    four[n % 4] = n < 4 ? larger : fmaxf(four[n % 4], larger);
                }
                largest = fmaxf(fmaxf(four[0], four[1]), fmaxf(four[2], four[3]));
                largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
            }
            m[row_tile][half] = __fmul_rn(largest, scale_log2);
            reference[half] = (largest == NEGATIVE_INFINITY ? 0.0f : m[row_tile][half]) - WEIGHT_EXPONENT;
        }
#pragma unroll
        for (int n = 0; n < TILE_KEYS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (c < 2 * halves)
                    s[row_tile][n][c] = power_of_2(__fmaf_rn(s[row_tile][n][c], scale_log2, -reference[c >> 1]));
    }
}

// Weights of a tile's keys, of which `s` are the powers.
template <int ROW_TILES>
DEVICE void pack_weights(Weights<ROW_TILES>& weights, const float (&s)[ROW_TILES][TILE_KEYS / 8][4], int halves) {
#pragma unroll
    for (int row_tile = 0; row_tile < ROW_TILES; row_tile++)
#pragma unroll
        for (int n = 0; n < TILE_KEYS / 8; n++) {
            const float (&four)[4] = s[row_tile][n];
            weights.p[row_tile][n / 2][2 * (n & 1)] = pack_half2(four[0], four[1]);
            weights.p[row_tile][n / 2][2 * (n & 1) + 1] = halves > 1 ? pack_half2(four[2], four[3]) : 0;
        }
}

template <int ROW_TILES>
DEVICE void weigh_scores(Weights<ROW_TILES>& weights, float (&s)[ROW_TILES][TILE_KEYS / 8][4],
                         const Rows<ROW_TILES>& rows, i32 first_key, const AttentionParams& p, int halves) {
    raise_scores(s, weights.m, rows, first_key, p, halves);
    pack_weights(weights, s, halves);
}

// The same of a tile in shared memory.
template <int ROW_TILES>
DEVICE void score_tile(Weights<ROW_TILES>& weights, const Rows<ROW_TILES>& rows, u32 keys, i32 first_key,
                       const AttentionParams& p, int halves) {
    float s[ROW_TILES][TILE_KEYS / 8][4];
    multiply_keys(s, rows, keys);
    weigh_scores(weights, s, rows, first_key, p, halves);
}

// The tensor core adds weights up: every column of a matrix of ones is their sum.
template <int ROW_TILES>
DEVICE void sum_weights(float (&sums)[4], const Weights<ROW_TILES>& weights, int row_tile) {
#pragma unroll
    for (int j = 0; j < TILE_GROUPS; j++) mma_16x8x16(sums, weights.p[row_tile][j], HALF2_ONES, HALF2_ONES);
}

// With codes: multiplies the weights, once they are added up, by the scales of the tile's values.
template <int ROW_TILES>
DEVICE void scale_weights(Weights<ROW_TILES>& weights, u32 values) {
    if constexpr (IS_Q8) {
#pragma unroll
        for (int row_tile = 0; row_tile < ROW_TILES; row_tile++) {
            multiply_weights(weights.p[row_tile], values + TILE_KEYS * ROW_BYTES);
            float sums[4] = {};
            sum_weights(sums, weights, row_tile);
#pragma unroll
            for (int half = 0; half < 2; half++)
                weights.code_bias[row_tile][half] = __fmul_rn(sums[2 * half], CODE_BIAS);
        }
    }
}

// Where a lane reads columns 16d..16d + 15 of a tile's values.
DEVICE u32 value_address(u32 values, int d) {
    const int lane = threadIdx.x % 32;
    return values + (IS_Q8 ? lane * ROW_BYTES + d * 16
                           : ((lane & 7) + (lane >> 3 & 1) * 8) * ROW_BYTES + (lane >> 4) * 16 + d * 32);
}

// Makes columns 16d..16d + 15 of the weighted sum of a tile's values.
template <int ROW_TILES>
DEVICE void weigh_values(float (&o)[ROW_TILES][2][4], const Weights<ROW_TILES>& weights, u32 values, int d) {
#pragma unroll
    for (int row_tile = 0; row_tile < ROW_TILES; row_tile++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) o[row_tile][n][c] = IS_Q8 ? weights.code_bias[row_tile][c >> 1] : 0.0f;
    for_value_groups<ROW_BYTES>(value_address(values, d), [&](int j, const u32* first, const u32* second) {
#pragma unroll
        for (int row_tile = 0; row_tile < ROW_TILES; row_tile++) {
            mma_16x8x16(o[row_tile][0], weights.p[row_tile][j], first[0], first[1]);
            mma_16x8x16(o[row_tile][1], weights.p[row_tile][j], second[0], second[1]);
        }
    });
}

// Makes a tile's partial result.
DEVICE void weigh_tile(Partial<1>& partial, Weights<1>& weights, u32 values) {
    float sums[4] = {};
    sum_weights(sums, weights, 0);
    scale_weights(weights, values);
#pragma unroll
    for (int half = 0; half < 2; half++) partial.m[0][half] = weights.m[0][half], partial.l[0][half] = sums[2 * half];
#pragma unroll
    for (int d = 0; d < CHUNKS; d++) {
        float o[1][2][4];
        weigh_values(o, weights, values, d);
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) partial.o[0][2 * d + n][c] = o[0][n][c];
    }
}

// Makes the same and merges it into what its warp has of the tiles before it. It pauses once, so that the compiler does
// not begin more loads ahead than it has registers for.
template <int ROW_TILES>
DEVICE void merge_tile(Partial<ROW_TILES>& partial, Weights<ROW_TILES>& weights, u32 values) {
    float keep[ROW_TILES][2], add[ROW_TILES][2];
#pragma unroll
    for (int row_tile = 0; row_tile < ROW_TILES; row_tile++) {
        float sums[4] = {};
        sum_weights(sums, weights, row_tile);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            partial.m[row_tile][half] = merge_weights(partial.m[row_tile][half], weights.m[row_tile][half],
                                                      keep[row_tile][half], add[row_tile][half]);
            partial.l[row_tile][half] =
                merged(partial.l[row_tile][half], keep[row_tile][half], sums[2 * half], add[row_tile][half]);
        }
    }
    scale_weights(weights, values);
#pragma unroll
    for (int d = 0; d < CHUNKS; d++) {
        float o[ROW_TILES][2][4];
        if (d == CHUNKS / 2) __syncwarp();
        weigh_values(o, weights, values, d);
#pragma unroll
        for (int row_tile = 0; row_tile < ROW_TILES; row_tile++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    partial.o[row_tile][2 * d + n][c] =
                        merged(partial.o[row_tile][2 * d + n][c], keep[row_tile][c >> 1], o[row_tile][n][c],
                               add[row_tile][c >> 1]);
    }
}

// ---- items whose rows several blocks share

#ifndef PREFILL_PARTS
#define PREFILL_PARTS 1  // blocks that share the rows of an item of prefill work for a KV head
#endif

// Leaves a block's `rows` rows of an item, those of part `part`; false if there are none.
DEVICE bool take_part(const AttentionParams& p, Item& item, i32 part, i32 rows) {
    const i32 first = part * rows;
    if (first >= item.num_rows) return false;
    item.first_row += first, item.num_rows = min(rows, item.num_rows - first);
    item.first_tile = lowest_key(p, item.first_position + item.first_row / p.group) / TILE_KEYS;
    item.end_tile = (item.first_position + (item.first_row + item.num_rows - 1) / p.group) / TILE_KEYS + 1;
    return true;
}

// ---- from the cache to shared memory

// Finds the same 16 keys of one tile after the other. The load of a table's entry is begun a tile before its use.
struct GroupWalk {
    const i32* table;
    i32 key, index, row;  // of the sequence; the block that has it; the row there
    i32 block;

    DEVICE GroupWalk(const AttentionParams& p, const Item& item, i32 tile, i32 group)
        : table(p.block_tables + (i64)item.sequence * p.max_blocks), key(tile * TILE_KEYS + group * KEY_GROUP) {
        index = key / p.block_tokens, row = key - index * p.block_tokens;
        block = key < item.num_keys ? table[index] : 0;
    }
    DEVICE void advance(const AttentionParams& p, i32 num_keys, i32 step_blocks) {
        key += TILE_KEYS, index += step_blocks, row += TILE_KEYS - step_blocks * p.block_tokens;
        if (row >= p.block_tokens) row -= p.block_tokens, index++;
        block = key < num_keys ? table[index] : 0;
    }
    // The row of the cache.
    DEVICE i64 offset(const AttentionParams& p, i32 kv_head) const {
        return ((i64)block * p.num_kv_heads + kv_head) * p.block_tokens + row;
    }
};

// A warp copies the 16 keys (or values) that begin at row `offset`. Rows past the `num_keys` become zeros:
// what lies there may belong to another sequence, or be NaN.
DEVICE void copy_group(u32 place, const HeadCache& cache, i64 offset, i32 tile, i32 group, i32 num_keys) {
    constexpr int rows_at_once = 32 / ROW_CHUNKS;
    const int lane = threadIdx.x % 32, first = lane / ROW_CHUNKS;
    const u32 to = place + (group * KEY_GROUP + first) * ROW_BYTES + lane % ROW_CHUNKS * 16;
    const u8* from = cache.heads + offset * (ROW_CHUNKS * 16) + lane * 16;
    const i32 rows = num_keys - tile * TILE_KEYS - group * KEY_GROUP - first;  // that there are from this lane's on
    if (first < rows_at_once)
#pragma unroll
        for (int row = 0; row < KEY_GROUP; row += rows_at_once)
            if (KEY_GROUP % rows_at_once == 0 || first + row < KEY_GROUP)
                copy_async(to + row * ROW_BYTES, from + row * (ROW_CHUNKS * 16), row < rows);
    copy_scales(place + TILE_KEYS * ROW_BYTES, cache, offset, tile, group, num_keys, lane);
}

// A warp copies a tile, if it is before `end_tile`. Lane i knows the offset of group i % TILE_GROUPS.
DEVICE void copy_tile(u32 place, const HeadCache& cache, i64 offset, i32 tile, i32 end_tile, i32 num_keys) {
    if (tile < end_tile)
#pragma unroll
        for (int group = 0; group < TILE_GROUPS; group++)
            copy_group(place, cache, __shfl_sync(ALL_LANES, offset, group), tile, group, num_keys);
    copy_commit();
}
