// A tile of heads of 256 and 512: see attention_wide.cu.
#pragma once
#include "attention_params.cuh"

constexpr int WARP_COLUMNS = 64;
constexpr int WARPS = HEAD_DIM / WARP_COLUMNS;
constexpr int THREADS = WARPS * 32;  // of a group
constexpr int WARP_KEYS = TILE_KEYS / WARPS;
constexpr int CHUNKS = HEAD_DIM / 16;
// Rows in shared memory are an odd number of 16-byte chunks apart: ldmatrix has no bank conflicts.
constexpr int QUERY_BYTES = HEAD_DIM * 2 + 16;
constexpr int ROW_BYTES = HEAD_DIM * ELEMENT_BYTES + 16;  // of keys and values
constexpr int TILE_BYTES = TILE_KEYS * (ROW_BYTES + SCALE_BYTES);
constexpr int WEIGHT_BYTES = TILE_KEYS * 2 + 16;  // of a row of weights
constexpr int COLUMN_TILES = WARP_COLUMNS / 8;    // of a warp
static_assert(WARP_KEYS == 16 || WARP_KEYS == 8, "a warp has one or two tiles of 8 keys");
static_assert(KV_BUFFERS == 1 || KV_BUFFERS == 2, "values share the place of keys, or have one of their own");

DEVICE int warp_of_group() { return threadIdx.x / 32 % WARPS; }

// Shared memory: queries, tiles, weights, and the largest score of each row and warp.
template <int ROW_TILES>
struct Place {
    static constexpr int ROWS = 16 * ROW_TILES;
    u8* shared;
    int groups;

    DEVICE u32 all_queries() const { return shared_address(shared); }
    DEVICE u32 keys() const { return all_queries() + groups * ROWS * QUERY_BYTES; }
    DEVICE u32 values() const { return keys() + (KV_BUFFERS - 1) * TILE_BYTES; }
    DEVICE int group() const { return groups > 1 ? threadIdx.x / THREADS : 0; }
    // Of this thread's group:
    DEVICE u32 queries() const { return all_queries() + group() * ROWS * QUERY_BYTES; }
    DEVICE u8* weights() const { return all_weights() + group() * ROWS * WEIGHT_BYTES; }
    DEVICE float* maxima() const {  // [WARPS][ROWS]
        return (float*)(all_weights() + groups * ROWS * WEIGHT_BYTES) + group() * WARPS * ROWS;
    }

   private:
    DEVICE u8* all_weights() const { return shared + groups * ROWS * QUERY_BYTES + KV_BUFFERS * TILE_BYTES; }
};

// What a warp has of its rows: lane 4g + t rows g and g + 8 of each row tile, columns 2t and 2t + 1 of every 8.
template <int ROW_TILES>
struct Partial {
    float m[ROW_TILES][2], l[ROW_TILES][2];
    float o[ROW_TILES][COLUMN_TILES][4];

    DEVICE void clear() {
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
            m[r][0] = m[r][1] = NEGATIVE_INFINITY, l[r][0] = l[r][1] = 0.0f;
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n++) o[r][n][0] = o[r][n][1] = o[r][n][2] = o[r][n][3] = 0.0f;
        }
    }
    // Merges another partial result of one row, whose output is `other(n)` for column tile n.
    template <typename Other>
    DEVICE void merge_row(int r, int half, float other_m, float other_l, Other other) {
        float keep, add;
        m[r][half] = merge_weights(m[r][half], other_m, keep, add);
        l[r][half] = merged(l[r][half], keep, other_l, add);
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++) {
            const float2 x = other(n);
            o[r][n][2 * half] = merged(o[r][n][2 * half], keep, x.x, add);
            o[r][n][2 * half + 1] = merged(o[r][n][2 * half + 1], keep, x.y, add);
        }
    }
    DEVICE void merge(const Partial& other) {
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                merge_row(r, half, other.m[r][half], other.l[r][half],
                          [&](int n) { return float2{other.o[r][n][2 * half], other.o[r][n][2 * half + 1]}; });
    }
};

DEVICE int lane_row(int row_tile, int half) { return 16 * row_tile + 8 * half + threadIdx.x % 32 / 4; }
DEVICE int lane_column(int n) { return warp_of_group() * WARP_COLUMNS + 8 * n + 2 * (threadIdx.x % 4); }

// ---- copies to shared memory by all threads

constexpr int ROW_CHUNKS = HEAD_DIM * ELEMENT_BYTES / 16, QUERY_CHUNKS = HEAD_DIM / 8;

// Lane i of each warp knows the offset of group i % TILE_GROUPS. Rows past the sequence's keys become zeros: what lies
// there may belong to another sequence, or be NaN.
template <int GROUPS>
DEVICE void copy_tile(u32 place, const HeadCache& cache, i64 offsets, const Item& item, i32 tile) {
    constexpr int rows_at_once = GROUPS * THREADS / ROW_CHUNKS;
    static_assert(KEY_GROUP % rows_at_once == 0, "a group is copied in whole passes");
    const int row = threadIdx.x / ROW_CHUNKS, chunk = threadIdx.x % ROW_CHUNKS;
    if (tile < item.end_tile)
#pragma unroll
        for (int group = 0; group < TILE_GROUPS; group++) {
            const i64 offset = __shfl_sync(ALL_LANES, offsets, group);
            const u8* from = cache.heads + (offset + row) * (ROW_CHUNKS * 16) + chunk * 16;
#pragma unroll
            for (int first = 0; first < KEY_GROUP; first += rows_at_once) {
                const int key = group * KEY_GROUP + first + row;
                copy_async(place + key * ROW_BYTES + chunk * 16, from + first * (ROW_CHUNKS * 16),
                           tile * TILE_KEYS + key < item.num_keys);
            }
            copy_scales(place + TILE_KEYS * ROW_BYTES, cache, offset, tile, group, item.num_keys, threadIdx.x);
        }
    copy_commit();
}

template <int ROWS, int GROUPS>
DEVICE void copy_queries(u32 place, const AttentionParams& p, const Item& item, i32 kv_head) {
    const int chunk = threadIdx.x % QUERY_CHUNKS;
#pragma unroll 4
    for (int row = threadIdx.x / QUERY_CHUNKS; row < GROUPS * ROWS; row += GROUPS * THREADS / QUERY_CHUNKS) {
        const bool valid = row < item.num_rows;
        i32 token, head;
        locate(p, item, kv_head, valid ? row : 0, token, head);
        const u16* from = p.qkv + (i64)(item.first_token + token) * p.qkv_width + head * HEAD_DIM + chunk * 8;
        copy_async(place + row * QUERY_BYTES + chunk * 16, from, valid);
    }
}

// ---- one tile

// Which keys a lane's rows see.
template <int ROW_TILES>
struct Seen {
    i32 lowest[ROW_TILES][2], highest[ROW_TILES][2];

    DEVICE Seen(const AttentionParams& p, const Item& item, i32 kv_head) {
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = lane_row(r, half);
                const bool valid = row < item.num_rows;
                i32 token, head;
                locate(p, item, kv_head, valid ? row : 0, token, head);
                lowest[r][half] = valid ? lowest_key(p, item.first_position + token) : 0;
                highest[r][half] = valid ? item.first_position + token : -1;
            }
    }
};

// Address of a lane's row of an A operand in rows `row_bytes` apart.
DEVICE u32 operand_address(u32 rows, int row_bytes) {
    const int lane = threadIdx.x % 32;
    return rows + ((lane & 7) + (lane >> 3 & 1) * 8) * row_bytes + (lane >> 4) * 16;
}

// With codes: what products of the rows and keys begin with.
template <int ROW_TILES>
DEVICE void find_code_bias(float (&bias)[ROW_TILES][2], const Place<ROW_TILES>& place) {
    const u32 queries = operand_address(place.queries(), QUERY_BYTES);
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        float sums[4] = {};
#pragma unroll 4
        for (int k = 0; k < CHUNKS; k++) {
            u32 a[4];
            load_matrices(a, queries + r * 16 * QUERY_BYTES + k * 32);
            mma_16x8x16(sums, a, HALF2_ONES, HALF2_ONES);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) bias[r][half] = __fmul_rn(sums[2 * half], CODE_BIAS);
    }
}

template <int ROW_TILES>
using Scores = float[ROW_TILES][WARP_KEYS / 8][4];

// Products of all rows with this warp's keys, within the soft cap, -inf where a row does not see a key.
template <int ROW_TILES>
DEVICE void score_keys(Scores<ROW_TILES>& s, const Place<ROW_TILES>& place, const AttentionParams& p,
                       const Seen<ROW_TILES>& seen, const float (&code_bias)[ROW_TILES][2], i32 first_key) {
    const int lane = threadIdx.x % 32, first = warp_of_group() * WARP_KEYS;
    const u32 queries = operand_address(place.queries(), QUERY_BYTES);
    const u32 keys =
        place.keys() + (WARP_KEYS == 16 ? (first + (lane & 7) + (lane >> 4 << 3)) * ROW_BYTES + (lane >> 3 & 1) * 16
                                        : (first + (lane & 7)) * ROW_BYTES + (lane >> 3) * 16);
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int n = 0; n < WARP_KEYS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) s[r][n][c] = IS_Q8 ? code_bias[r][c >> 1] : 0.0f;
    // Four matrices of 8 keys and 16 bytes are B operands of `AT_ONCE` chunks, one or two of each.
    constexpr int AT_ONCE = 16 / WARP_KEYS * (IS_Q8 ? 2 : 1);
#pragma unroll(IS_Q8 ? 1 : ROW_TILES == 1 ? 8 : 2)
    for (int k = 0; k < CHUNKS; k += AT_ONCE) {
        u32 matrices[4];
        load_matrices(matrices, keys + k * (16 * ELEMENT_BYTES));
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                u32 a[4];
                load_matrices(a, queries + r * 16 * QUERY_BYTES + (k + i) * 32);
#pragma unroll
                for (int n = 0; n < WARP_KEYS / 8; n++) {
                    if constexpr (IS_Q8) {
                        const u32 codes = matrices[WARP_KEYS == 16 ? 2 * n + i : i];
                        mma_16x8x16(s[r][n], a, even_codes(codes), odd_codes(codes));
                    } else {
                        const int b = 2 * (WARP_KEYS == 16 ? n : i);
                        mma_16x8x16(s[r][n], a, matrices[b], matrices[b + 1]);
                    }
                }
            }
    }
    if constexpr (IS_Q8) {
#pragma unroll
        for (int n = 0; n < WARP_KEYS / 8; n++) {
            const u32 scales = load_scales(place.keys() + TILE_KEYS * ROW_BYTES, first / 8 + n);
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    s[r][n][c] = __fmul_rn(s[r][n][c], c & 1 ? high_half(scales) : low_half(scales));
        }
    }
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int n = 0; n < WARP_KEYS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
#ifdef SOFTCAP
                s[r][n][c] = soft_capped(p, s[r][n][c]);
#endif
                const i32 key = first_key + first + 8 * n + 2 * (lane & 3) + (c & 1);
                if (key < seen.lowest[r][c >> 1] || key > seen.highest[r][c >> 1]) s[r][n][c] = NEGATIVE_INFINITY;
            }
}

// Leaves the largest score of this warp's keys where all warps see it.
template <int ROW_TILES>
DEVICE void put_maxima(const Scores<ROW_TILES>& s, const Place<ROW_TILES>& place) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float largest = NEGATIVE_INFINITY;
#pragma unroll
            for (int n = 0; n < WARP_KEYS / 8; n++)
                largest = fmaxf(largest, fmaxf(s[r][n][2 * half], s[r][n][2 * half + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
            if (threadIdx.x % 4 == 0)
                place.maxima()[warp_of_group() * Place<ROW_TILES>::ROWS + lane_row(r, half)] = largest;
        }
}

// Makes weights of the scores, relative to the largest of the tile, which goes to `m`.
template <int ROW_TILES>
DEVICE void put_weights(float (&m)[ROW_TILES][2], const Scores<ROW_TILES>& s, const Place<ROW_TILES>& place,
                        float scale_log2) {
    const int first = warp_of_group() * WARP_KEYS + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = lane_row(r, half);
            float largest = NEGATIVE_INFINITY;
#pragma unroll
            for (int w = 0; w < WARPS; w++) largest = fmaxf(largest, place.maxima()[w * Place<ROW_TILES>::ROWS + row]);
            m[r][half] = __fmul_rn(largest, scale_log2);
            const float reference = (largest == NEGATIVE_INFINITY ? 0.0f : m[r][half]) - WEIGHT_EXPONENT;
#pragma unroll
            for (int n = 0; n < WARP_KEYS / 8; n++)
                *(u32*)(place.weights() + row * WEIGHT_BYTES + (first + 8 * n) * 2) =
                    pack_half2(power_of_2(__fmaf_rn(s[r][n][2 * half], scale_log2, -reference)),
                               power_of_2(__fmaf_rn(s[r][n][2 * half + 1], scale_log2, -reference)));
        }
}

// Merges the weighted sum of a tile's values, this warp's columns of it, into `split`.
template <int ROW_TILES>
DEVICE void merge_tile(Partial<ROW_TILES>& split, const float (&m)[ROW_TILES][2], const Place<ROW_TILES>& place) {
    const int lane = threadIdx.x % 32;
    const u32 values = place.values() + warp_of_group() * WARP_COLUMNS * ELEMENT_BYTES +
                       (IS_Q8 ? lane * ROW_BYTES : ((lane & 7) + (lane >> 3 & 1) * 8) * ROW_BYTES + (lane >> 4) * 16);
    u32 weights[ROW_TILES][TILE_GROUPS][4];
    float code_bias[ROW_TILES][2];
    float keep[ROW_TILES][2], add[ROW_TILES][2];
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        float sums[4] = {};
#pragma unroll
        for (int j = 0; j < TILE_GROUPS; j++) {
            load_matrices(weights[r][j], operand_address(shared_address(place.weights()), WEIGHT_BYTES) +
                                             r * 16 * WEIGHT_BYTES + j * 32);
            mma_16x8x16(sums, weights[r][j], HALF2_ONES, HALF2_ONES);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            split.m[r][half] = merge_weights(split.m[r][half], m[r][half], keep[r][half], add[r][half]);
            split.l[r][half] = merged(split.l[r][half], keep[r][half], sums[2 * half], add[r][half]);
        }
        if constexpr (IS_Q8) {
            multiply_weights(weights[r], place.values() + TILE_KEYS * ROW_BYTES);
            sums[0] = sums[1] = sums[2] = sums[3] = 0.0f;
#pragma unroll
            for (int j = 0; j < TILE_GROUPS; j++) mma_16x8x16(sums, weights[r][j], HALF2_ONES, HALF2_ONES);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) code_bias[r][half] = __fmul_rn(sums[2 * half], CODE_BIAS);
    }
#pragma unroll
    for (int d = 0; d < WARP_COLUMNS / 16; d++) {
        float o[ROW_TILES][2][4];
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) o[r][n][c] = IS_Q8 ? code_bias[r][c >> 1] : 0.0f;
        for_value_groups<ROW_BYTES>(values + d * (16 * ELEMENT_BYTES), [&](int j, const u32* first, const u32* second) {
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) {
                mma_16x8x16(o[r][0], weights[r][j], first[0], first[1]);
                mma_16x8x16(o[r][1], weights[r][j], second[0], second[1]);
            }
        });
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    split.o[r][2 * d + n][c] =
                        merged(split.o[r][2 * d + n][c], keep[r][c >> 1], o[r][n][c], add[r][c >> 1]);
    }
}
