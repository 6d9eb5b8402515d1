// RMS norm and layer norm of float32 rows. A row's sums are made in eight parts, which lie a warp apart, and the parts
// are added in order: so any number of warps may share a row, and its bits are the same in every kernel.
#pragma once
#include "common.cuh"

struct NormParams {
    const float* weight;  // [width]
    const float* bias;    // [width]; null: RMS norm, else layer norm
    float epsilon;
    int width;  // a multiple of 4
};

constexpr int NORM_PARTS = 8;

DEVICE float sum_of_parts(const float* parts) {
    float sum = parts[0];
#pragma unroll
    for (int i = 1; i < NORM_PARTS; i++) sum += parts[i];
    return sum;
}

// Spelled out: no choice of roundings is left to the compiler.
DEVICE float add_squares(float sum, float4 v) {
    sum = fmaf(v.x, v.x, sum), sum = fmaf(v.y, v.y, sum);
    return fmaf(v.w, v.w, fmaf(v.z, v.z, sum));
}

DEVICE float norm_factor(const NormParams& p, float squares) {
    return rsqrtf(__fdividef(squares, p.width) + p.epsilon);
}

// Four columns of a row, from which its mean is taken already. `weight` [width]: the norm's, or a copy of them.
DEVICE float4 scale_quad(const NormParams& p, const float* weight, int column, float4 v, float factor) {
    const float4 w = *(const float4*)(weight + column);
    float4 n = make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w);
    if (p.bias) {
        const float4 b = *(const float4*)(p.bias + column);
        n.x = __fadd_rn(n.x, b.x), n.y = __fadd_rn(n.y, b.y);
        n.z = __fadd_rn(n.z, b.z), n.w = __fadd_rn(n.w, b.w);
    }
    return n;
}

constexpr int GROUP_QUADS = 3;  // of a part, loaded together: a row of up to 3,072 has one group

DEVICE float4 sum_of(float4 a, float b) { return make_float4(a.x + b, a.y + b, a.z + b, a.w + b); }

// Calls use(column, values) for what this lane has of part `part` of a row, in order. Loops are short and not unrolled:
// decode runs through this code once in a kernel, and fetching instructions takes longer than executing them.
template <typename Use>
DEVICE void for_part(const float* row, int part, int width, Use use) {
    constexpr int step = NORM_PARTS * 128;
#pragma unroll 1
    for (int group = 0; group < width; group += GROUP_QUADS * step) {
        const int first = group + (part * 32 + threadIdx.x % 32) * 4;
        float4 quads[GROUP_QUADS];
#pragma unroll
        for (int q = 0; q < GROUP_QUADS; q++) {
            if (group + q * step >= width) break;
            if (first + q * step < width) quads[q] = *(const float4*)(row + first + q * step);
        }
#pragma unroll
        for (int q = 0; q < GROUP_QUADS; q++) {
            if (group + q * step >= width) break;
            if (first + q * step < width) use(first + q * step, quads[q]);
        }
    }
}

// All threads of a block: `row_at(i)` [width] of `num_rows` rows -> normed, given to `store(i, column, four values)`
// 4 columns at a time. `weight` [width]: the norm's, or a copy of them. `shared`: float [2][num_rows][NORM_PARTS].
template <typename RowAt, typename Store>
DEVICE void normalise_rows(const NormParams& p, const float* weight, int num_rows, float* shared, RowAt row_at, Store store) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
    const int num_tasks = num_rows * NORM_PARTS;
    float *sums = shared, *squares = shared + num_tasks;
    if (p.bias) {
#pragma unroll 1
        for (int task = warp; task < num_tasks; task += num_warps) {
            float sum = 0.0f;
            for_part(row_at(task / NORM_PARTS), task % NORM_PARTS, p.width,
                     [&](int, float4 v) { sum += (v.x + v.y) + (v.z + v.w); });
            sum = warp_sum(sum);
            if (lane == 0) sums[task] = sum;
        }
        __syncthreads();
    }
    auto minus_mean = [&](int which) {
        return p.bias ? -__fdividef(sum_of_parts(sums + which * NORM_PARTS), p.width) : 0.0f;
    };
#pragma unroll 1
    for (int task = warp; task < num_tasks; task += num_warps) {
        const float shift = minus_mean(task / NORM_PARTS);
        float sum = 0.0f;
        for_part(row_at(task / NORM_PARTS), task % NORM_PARTS, p.width, [&](int, float4 v) {
            sum = add_squares(sum, sum_of(v, shift));
        });
        sum = warp_sum(sum);
        if (lane == 0) squares[task] = sum;
    }
    __syncthreads();
#pragma unroll 1
    for (int task = warp; task < num_tasks; task += num_warps) {
        const int which = task / NORM_PARTS;
        const float shift = minus_mean(which);
        const float factor = norm_factor(p, sum_of_parts(squares + which * NORM_PARTS));
        for_part(row_at(which), task % NORM_PARTS, p.width, [&](int column, float4 v) {
            store(which, column, scale_quad(p, weight, column, sum_of(v, shift), factor));
        });
    }
}
