// What attention.cuh has for 16 or 32 query rows, for at most 8 of them, with the operands of the tensor core
// exchanged: 16 keys, or 16 columns of values, are an A operand, and queries or weights a B operand of 8 columns. That
// takes half the products and registers. Sums are of the same numbers in the same order, and have the same bits.
#pragma once
#include "attention.cuh"

// Query rows of a decode block.
#ifdef ROPE_ROWS
constexpr int BLOCK_ROWS = ROPE_ROWS;
#else
constexpr int BLOCK_ROWS = DECODE_ROWS;
#endif
static_assert(BLOCK_ROWS == 8 || BLOCK_ROWS == 16, "columns of a B operand, or rows of an A operand");

// Lane 4g + t has row g of B operands, and in sums rows 2t and 2t + 1.
struct SwappedRows {
    u32 queries[CHUNKS][2];
    i32 lowest[2], highest[2];  // first and last key that the row sees
    i32 all_lowest, all_highest;
    float code_bias[2];
};

struct SwappedWeights {
    u32 p[TILE_GROUPS][2];
    float m[2];
    float code_bias[2];
};

struct SwappedPartial {
    float m[2], l[2];
    float o[CHUNKS][4];  // columns g and g + 8 of every 16
};

// Transposes a matrix of 8 x 8 float16, of which each lane has two neighbours.
DEVICE u32 transposed(u32 pair) {
    u32 r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
    return r;
}

// Adds the products of 16 keys, or columns of values, and the rows: `first` are those of the first 8, `second` of the
// others.
DEVICE void mma_swapped(float (&d)[4], const u32* first, const u32* second, const u32 (&b)[2]) {
    const u32 a[4] = {first[0], second[0], first[1], second[1]};
    mma_16x8x16(d, a, b[0], b[1]);
}

// Float16: A operands as ldmatrix leaves them, of chunk k of all keys of a tile, and of up to OPERANDS times 16 columns
// of 16 values. They are loaded before the first is used.
constexpr int OPERANDS = CHUNKS < 4 ? CHUNKS : 4;

DEVICE void load_key_operands(u32 (&a)[TILE_GROUPS][4], u32 keys, int k) {
    const int lane = threadIdx.x % 32;
    const u32 address = keys + ((lane & 7) + (lane >> 3 & 1) * 8) * ROW_BYTES + (lane >> 4) * 16;
#pragma unroll
    for (int n = 0; n < TILE_GROUPS; n++) load_matrices(a[n], address + n * KEY_GROUP * ROW_BYTES + k * 32);
}
DEVICE void load_value_operands(u32 (&a)[OPERANDS][4], u32 values, int j, int first) {
    const int lane = threadIdx.x % 32;
    const u32 address = values + ((lane & 7) + (lane >> 4) * 8) * ROW_BYTES + (lane >> 3 & 1) * 16;
#pragma unroll
    for (int i = 0; i < OPERANDS; i++)
        if (first + i < CHUNKS) load_matrices_transposed(a[i], address + j * KEY_GROUP * ROW_BYTES + (first + i) * 32);
}

// The sum of each row's elements.
template <int COUNT>
DEVICE void sum_swapped(float (&sums)[2], const u32 (&b)[COUNT][2]) {
    constexpr u32 ones[4] = {HALF2_ONES, HALF2_ONES, HALF2_ONES, HALF2_ONES};
    float d[4] = {};
#pragma unroll
    for (int i = 0; i < COUNT; i++) mma_16x8x16(d, ones, b[i][0], b[i][1]);
    sums[0] = d[0], sums[1] = d[1];
}

DEVICE void find_code_bias(SwappedRows& rows) {
    if constexpr (IS_Q8) {
        sum_swapped(rows.code_bias, rows.queries);
#pragma unroll
        for (int e = 0; e < 2; e++) rows.code_bias[e] = __fmul_rn(rows.code_bias[e], CODE_BIAS);
    }
}

DEVICE void multiply_keys(float (&s)[TILE_GROUPS][4], const SwappedRows& rows, u32 keys) {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int n = 0; n < TILE_GROUPS; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) s[n][c] = IS_Q8 ? rows.code_bias[c & 1] : 0.0f;
    if constexpr (IS_Q8) {
        for_key_groups(keys, [&](int k, int n, const u32* first, const u32* second) {
            mma_swapped(s[n], first, second, rows.queries[k]);
        });
#pragma unroll
        for (int n = 0; n < TILE_GROUPS; n++) {
            const u32 scales = keys + TILE_KEYS * ROW_BYTES + (n * KEY_GROUP + g) * 2;
            const float low = load_scale(scales), high = load_scale(scales + 16);
#pragma unroll
            for (int c = 0; c < 4; c++) s[n][c] = __fmul_rn(s[n][c], c < 2 ? low : high);
        }
    } else {
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            u32 a[TILE_GROUPS][4];
            load_key_operands(a, keys, k);
#pragma unroll
            for (int n = 0; n < TILE_GROUPS; n++) mma_16x8x16(s[n], a[n], rows.queries[k][0], rows.queries[k][1]);
        }
    }
}

template <int COUNT>
DEVICE float largest_of(const float* values) {
    if constexpr (COUNT == 1)
        return values[0];
    else
        return fmaxf(largest_of<COUNT / 2>(values), largest_of<COUNT - COUNT / 2>(values + COUNT / 2));
}

// Scores of keys that a row does not see become -inf.
DEVICE void mask_scores(float (&s)[TILE_GROUPS][4], const SwappedRows& rows, i32 first_key) {
    if (first_key >= rows.all_lowest && first_key + TILE_KEYS - 1 <= rows.all_highest) return;
#pragma unroll
    for (int n = 0; n < TILE_GROUPS; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const i32 key = first_key + n * KEY_GROUP + c / 2 * 8 + threadIdx.x % 32 / 4;
            if (key < rows.lowest[c & 1] || key > rows.highest[c & 1]) s[n][c] = NEGATIVE_INFINITY;
        }
}

// Makes weights of a tile's scores.
DEVICE void weigh_scores(SwappedWeights& weights, const float (&s)[TILE_GROUPS][4], const AttentionParams& p) {
    // Both rows' side by side, so that neither waits for the other.
    float largest[2], reference[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float of_group[TILE_GROUPS];
#pragma unroll
        for (int n = 0; n < TILE_GROUPS; n++) of_group[n] = fmaxf(s[n][e], s[n][2 + e]);
        largest[e] = largest_of<TILE_GROUPS>(of_group);
    }
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2)
#pragma unroll
        for (int e = 0; e < 2; e++) largest[e] = fmaxf(largest[e], __shfl_xor_sync(ALL_LANES, largest[e], distance));
#pragma unroll
    for (int e = 0; e < 2; e++) {
        weights.m[e] = __fmul_rn(largest[e], p.scores.scale_log2);
        reference[e] = (largest[e] == NEGATIVE_INFINITY ? 0.0f : weights.m[e]) - WEIGHT_EXPONENT;
    }
    auto weigh = [&](float score, int e) { return power_of_2(__fmaf_rn(score, p.scores.scale_log2, -reference[e])); };
#pragma unroll
    for (int n = 0; n < TILE_GROUPS; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            weights.p[n][half] = transposed(pack_half2(weigh(s[n][2 * half], 0), weigh(s[n][2 * half + 1], 1)));
}

DEVICE void score_tile(SwappedWeights& weights, const SwappedRows& rows, u32 keys, i32 first_key,
                       const AttentionParams& p, int) {
    float s[TILE_GROUPS][4];
    multiply_keys(s, rows, keys);
#ifdef SOFTCAP
#pragma unroll
    for (int n = 0; n < TILE_GROUPS; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) s[n][c] = soft_capped(p, s[n][c]);
#endif
    mask_scores(s, rows, first_key);
    weigh_scores(weights, s, p);
}

// The weighted sums of a tile's values, float16, and the sum of the weights: chains of products side by side.
DEVICE void weigh_halves(SwappedPartial& partial, const SwappedWeights& weights, u32 values) {
    constexpr u32 ones[4] = {HALF2_ONES, HALF2_ONES, HALF2_ONES, HALF2_ONES};
    float sums[4] = {};
#pragma unroll
    for (int d = 0; d < CHUNKS; d++)
#pragma unroll
        for (int c = 0; c < 4; c++) partial.o[d][c] = 0.0f;
#pragma unroll
    for (int first = 0; first < CHUNKS; first += OPERANDS)
#pragma unroll
        for (int j = 0; j < TILE_GROUPS; j++) {
            u32 a[OPERANDS][4];
            load_value_operands(a, values, j, first);
            const u32(&b)[2] = weights.p[j];
            if (first == 0) mma_16x8x16(sums, ones, b[0], b[1]);
#pragma unroll
            for (int i = 0; i < OPERANDS; i++)
                if (first + i < CHUNKS) mma_16x8x16(partial.o[first + i], a[i], b[0], b[1]);
        }
    partial.l[0] = sums[0], partial.l[1] = sums[1];
}

// The same with codes.
DEVICE void weigh_codes(SwappedPartial& partial, SwappedWeights& weights, u32 values) {
    sum_swapped(partial.l, weights.p);
#pragma unroll
    for (int j = 0; j < TILE_GROUPS; j++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            weights.p[j][half] =
                half2_multiply(weights.p[j][half], load_scales(values + TILE_KEYS * ROW_BYTES, 2 * j + half));
    sum_swapped(weights.code_bias, weights.p);
#pragma unroll
    for (int d = 0; d < CHUNKS; d++) {
        float (&o)[4] = partial.o[d];
#pragma unroll
        for (int c = 0; c < 4; c++) o[c] = __fmul_rn(weights.code_bias[c & 1], CODE_BIAS);
        for_value_groups<ROW_BYTES>(value_address(values, d), [&](int j, const u32* first, const u32* second) {
            mma_swapped(o, first, second, weights.p[j]);
        });
    }
}

// Makes a tile's partial result.
DEVICE void weigh_tile(SwappedPartial& partial, SwappedWeights& weights, u32 values) {
    partial.m[0] = weights.m[0], partial.m[1] = weights.m[1];
    if constexpr (IS_Q8)
        weigh_codes(partial, weights, values);
    else
        weigh_halves(partial, weights, values);
}
