// A tile of the KV cache in the registers of a warp that attends.
#pragma once
#include "decode_layers.cuh"

// A tile's keys and values of float16 as the tensor core's A operands, and what scores begin with: -inf for keys that
// come after the newest. All of it is there before the queries are.
struct TileOperands {
    u32 keys[TILE_GROUPS][CHUNKS][4], values[TILE_GROUPS][OPERANDS][4];
    float scores[TILE_GROUPS][4];
    static_assert(CHUNKS == OPERANDS, "all columns at once");

    // `num_keys`: of those from the tile's first on.
    DEVICE void load(u32 key_rows, u32 value_rows, i32 num_keys) {
#pragma unroll
        for (int n = 0; n < TILE_GROUPS; n++) {
            load_keys(n, key_rows);
            load_value_operands(values[n], value_rows, n, 0);
#pragma unroll
            for (int c = 0; c < 4; c++)
                scores[n][c] = n * KEY_GROUP + c / 2 * 8 + threadIdx.x % 32 / 4 < num_keys ? 0.0f : NEGATIVE_INFINITY;
        }
    }
    // Those of one group once more; `key_lane` and `value_lane` as below.
    DEVICE void load_keys_of(int group, u32 key_lane) {
#pragma unroll
        for (int n = 0; n < TILE_GROUPS; n++)
            if (n == group)
#pragma unroll
                for (int k = 0; k < CHUNKS; k++)
                    load_matrices(keys[n][k], key_lane + n * KEY_GROUP * ROW_BYTES + k * 32);
    }
    DEVICE void load_values_of(int group, u32 value_lane) {
#pragma unroll
        for (int n = 0; n < TILE_GROUPS; n++)
            if (n == group)
#pragma unroll
                for (int d = 0; d < CHUNKS; d++)
                    load_matrices_transposed(values[n][d], value_lane + n * KEY_GROUP * ROW_BYTES + d * 32);
    }
    // What this lane gives to ldmatrix.
    DEVICE static u32 key_lane(u32 key_rows) {
        const int lane = threadIdx.x % 32;
        return key_rows + ((lane & 7) + (lane >> 3 & 1) * 8) * ROW_BYTES + (lane >> 4) * 16;
    }
    DEVICE static u32 value_lane(u32 value_rows) {
        const int lane = threadIdx.x % 32;
        return value_rows + ((lane & 7) + (lane >> 4) * 8) * ROW_BYTES + (lane >> 3 & 1) * 16;
    }
    // Of no tile: were it not defined, its registers would be taken all the way round the loop.
    DEVICE void clear() {
#pragma unroll
        for (int n = 0; n < TILE_GROUPS; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                scores[n][c] = 0.0f;
#pragma unroll
                for (int k = 0; k < CHUNKS; k++) keys[n][k][c] = values[n][k][c] = 0;
            }
    }
    DEVICE void score(const SwappedRows& rows) {
#pragma unroll
        for (int k = 0; k < CHUNKS; k++)
#pragma unroll
            for (int n = 0; n < TILE_GROUPS; n++)
                mma_16x8x16(scores[n], keys[n][k], rows.queries[k][0], rows.queries[k][1]);
    }
    // As `weigh_tile`.
    DEVICE void weigh(SwappedPartial& partial, const SwappedWeights& weights) const {
        constexpr u32 ones[4] = {HALF2_ONES, HALF2_ONES, HALF2_ONES, HALF2_ONES};
        float sums[4] = {};
#pragma unroll
        for (int d = 0; d < CHUNKS; d++) partial.o[d][0] = partial.o[d][1] = partial.o[d][2] = partial.o[d][3] = 0.0f;
#pragma unroll
        for (int j = 0; j < TILE_GROUPS; j++) {
            const u32(&b)[2] = weights.p[j];
            mma_16x8x16(sums, ones, b[0], b[1]);
#pragma unroll
            for (int d = 0; d < CHUNKS; d++) mma_16x8x16(partial.o[d], values[j][d], b[0], b[1]);
        }
        partial.m[0] = weights.m[0], partial.m[1] = weights.m[1];
        partial.l[0] = sums[0], partial.l[1] = sums[1];
    }

   private:
    DEVICE void load_keys(int n, u32 key_rows) {
        const u32 address = key_lane(key_rows);
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) load_matrices(keys[n][k], address + n * KEY_GROUP * ROW_BYTES + k * 32);
    }
};
