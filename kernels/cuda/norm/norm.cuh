// RMS norm and layer norm of float32 rows. A row is cut in eight partitions, which lie a warp apart, and their
// sums are added in order: so a row's bits are the same in every kernel.
#pragma once
#include "../common/common.cuh"

struct NormParams {
    const float* weight;  // [width]
    const float* bias;    // [width]; null: RMS norm, else layer norm
    float epsilon;
    int width;  // a multiple of 4
    float inverse_width;
};

// The first of the columns that this lane has of partition `partition` of a row; its quads of a partition are
// PARTITION_STEP columns apart.
DEVICE int partition_column(int partition) { return (partition * 32 + threadIdx.x % 32) * 4; }

DEVICE float row_sum(const float* sums) {
    float sum = sums[0];
#pragma unroll
    for (int i = 1; i < NORM_PARTITIONS; i++) sum += sums[i];
    return sum;
}

// Spelled out: no choice of roundings is left to the compiler.
DEVICE float add_squares(float sum, float4 v) {
    sum = fmaf(v.x, v.x, sum), sum = fmaf(v.y, v.y, sum);
    return fmaf(v.w, v.w, fmaf(v.z, v.z, sum));
}

DEVICE float minus_mean(const NormParams& p, float sum) { return -__fmul_rn(sum, p.inverse_width); }

DEVICE float norm_factor(const NormParams& p, float squares) {
    return rsqrtf(fmaf(squares, p.inverse_width, p.epsilon));
}

// Four columns of a row, from which its mean is taken already, and the norm's weights `w` for them.
DEVICE float4 scale_quad(const NormParams& p, float4 w, int column, float4 v, float factor) {
    float4 n = make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w);
    if (p.bias) {
        const float4 b = *(const float4*)(p.bias + column);
        n.x = __fadd_rn(n.x, b.x), n.y = __fadd_rn(n.y, b.y);
        n.z = __fadd_rn(n.z, b.z), n.w = __fadd_rn(n.w, b.w);
    }
    return n;
}

DEVICE uint2 pack_quad(float4 n) { return make_uint2(pack_half2(n.x, n.y), pack_half2(n.z, n.w)); }

constexpr int GROUP_QUADS = 3;  // of a partition, loaded together: a row of up to 3,072 has one group

DEVICE float4 sum_of(float4 a, float b) { return make_float4(a.x + b, a.y + b, a.z + b, a.w + b); }

// Calls use(column, values) for what this lane has of partition `partition` of a row, in order.
template <typename Use>
DEVICE void for_partition(const float* row, int partition, int width, Use use) {
#pragma unroll 1
    for (int group = 0; group < width; group += GROUP_QUADS * PARTITION_STEP) {
        const int first = group + partition_column(partition);
        float4 quads[GROUP_QUADS];
#pragma unroll
        for (int q = 0; q < GROUP_QUADS; q++) {
            if (group + q * PARTITION_STEP >= width) break;
            if (first + q * PARTITION_STEP < width) quads[q] = *(const float4*)(row + first + q * PARTITION_STEP);
        }
#pragma unroll
        for (int q = 0; q < GROUP_QUADS; q++) {
            if (group + q * PARTITION_STEP >= width) break;
            if (first + q * PARTITION_STEP < width) use(first + q * PARTITION_STEP, quads[q]);
        }
    }
}

// Puts the sum of this warp's partition of a row where those of others are.
DEVICE void put_partition(float* sums, float sum) {
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0 && threadIdx.x < NORM_PARTITIONS * 32) sums[threadIdx.x / 32] = sum;
    __syncthreads();
}

// A block of NORM_PARTITIONS warps calls it: gives store(column, four values) the normed `row` [width].
// `shared`: float [2][NORM_PARTITIONS].
template <typename Store>
DEVICE void normalise_row(const NormParams& p, const float* row, float* shared, Store store) {
    const int partition = threadIdx.x / 32;
    float shift = 0.0f;
    if (p.bias) {
        float sum = 0.0f;
        for_partition(row, partition, p.width, [&](int, float4 v) { sum += (v.x + v.y) + (v.z + v.w); });
        put_partition(shared + NORM_PARTITIONS, sum);
        shift = minus_mean(p, row_sum(shared + NORM_PARTITIONS));
    }
    float squares = 0.0f;
    for_partition(row, partition, p.width, [&](int, float4 v) { squares = add_squares(squares, sum_of(v, shift)); });
    put_partition(shared, squares);
    const float factor = norm_factor(p, row_sum(shared));
    for_partition(row, partition, p.width, [&](int column, float4 v) {
        store(column, scale_quad(p, *(const float4*)(p.weight + column), column, sum_of(v, shift), factor));
    });
}

// One row, by NORM_PARTITIONS warps of a block or more: a lane keeps its columns in registers, of a row of up to
// ROW_QUADS * PARTITION_STEP. The same bits as above.
constexpr int ROW_QUADS = 4;

class NormRow {
    float4 values[ROW_QUADS];

   public:
    // Calls use(quad, column) for this lane's columns.
    template <typename Use>
    DEVICE void for_columns(int width, Use use) const {
#pragma unroll
        for (int quad = 0; quad < ROW_QUADS; quad++) {
            const int column = quad * PARTITION_STEP + threadIdx.x * 4;
            if (quad * PARTITION_STEP >= width) break;
            if (threadIdx.x < NORM_PARTITIONS * 32 && column < width) use(quad, column);
        }
    }
    // Copies the norm's weights to `weights` [width] in shared memory: each thread copies what it needs itself, and
    // commits and waits later. They are constant: this may come before `wait_for_previous`.
    DEVICE void copy_weights(const NormParams& p, float* weights) const {
        for_columns(p.width,
                    [&](int, int column) { copy_words<16>(shared_address(weights + column), p.weight + column); });
    }
    DEVICE void load(const float* row, int width) {
        for_columns(width, [&](int quad, int column) { values[quad] = *(const float4*)(row + column); });
    }
    // What the row is multiplied by, once its mean is taken from it. All threads of the block call it. `shared`: float
    // [2][NORM_PARTITIONS].
    DEVICE float centre(const NormParams& p, float* shared) {
        float shift = 0.0f;
        if (p.bias) {
            float sum = 0.0f;
            for_columns(p.width, [&](int quad, int) {
                const float4 v = values[quad];
                sum += (v.x + v.y) + (v.z + v.w);
            });
            put_partition(shared + NORM_PARTITIONS, sum);
            shift = minus_mean(p, row_sum(shared + NORM_PARTITIONS));
        }
        float squares = 0.0f;
        for_columns(p.width, [&](int quad, int) {
            values[quad] = sum_of(values[quad], shift);
            squares = add_squares(squares, values[quad]);
        });
        put_partition(shared, squares);
        return norm_factor(p, row_sum(shared));
    }
    // Gives store(column, four values) the normed row; `weights`: in shared memory.
    template <typename Store>
    DEVICE void scale(const NormParams& p, const float* weights, float factor, Store store) const {
        for_columns(p.width, [&](int quad, int column) {
            store(column, scale_quad(p, *(const float4*)(weights + column), column, values[quad], factor));
        });
    }
    // The same with weights that were loaded before.
    template <typename Store>
    DEVICE void scale(const NormParams& p, const float4 (&weights)[ROW_QUADS], float factor, Store store) const {
        for_columns(p.width, [&](int quad, int column) {
            store(column, scale_quad(p, weights[quad], column, values[quad], factor));
        });
    }
};
