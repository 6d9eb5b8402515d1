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

// Weights may be read before `wait_for_previous`: bring them near.
DEVICE void prefetch_norm(const NormParams& p) {
    for (int i = threadIdx.x; i * 32 < p.width; i += blockDim.x) {  // lines of 128 bytes
        asm volatile("prefetch.global.L1 [%0];" ::"l"(p.weight + i * 32));
        if (p.bias) asm volatile("prefetch.global.L1 [%0];" ::"l"(p.bias + i * 32));
    }
}

DEVICE float sum_of_parts(const float* parts) {
    float sum = parts[0];
#pragma unroll
    for (int i = 1; i < NORM_PARTS; i++) sum += parts[i];
    return sum;
}

// All threads of a block: `row_at(i)` [width] of `num_rows` rows -> normed, given to `store(i, column, four values)`
// 4 columns at a time. `shared`: float [2][num_rows][NORM_PARTS].
template <typename RowAt, typename Store>
DEVICE void normalise_rows(const NormParams& p, int num_rows, float* shared, RowAt row_at, Store store) {
    const int lane = threadIdx.x % 32, num_warps = blockDim.x / 32, quads = p.width / 4;
    float *sums = shared, *squares = shared + num_rows * NORM_PARTS;
    if (p.bias) {
        for (int task = threadIdx.x / 32; task < num_rows * NORM_PARTS; task += num_warps) {
            const float4* row = (const float4*)row_at(task / NORM_PARTS);
            float sum = 0.0f;
#pragma unroll 4
            for (int i = task % NORM_PARTS * 32 + lane; i < quads; i += 32 * NORM_PARTS) {
                const float4 v = row[i];
                sum += (v.x + v.y) + (v.z + v.w);
            }
            sum = warp_sum(sum);
            if (lane == 0) sums[task] = sum;
        }
        __syncthreads();
    }
    for (int task = threadIdx.x / 32; task < num_rows * NORM_PARTS; task += num_warps) {
        const float4* row = (const float4*)row_at(task / NORM_PARTS);
        const float mean = p.bias ? __fdividef(sum_of_parts(sums + task / NORM_PARTS * NORM_PARTS), p.width) : 0.0f;
        float sum = 0.0f;
#pragma unroll 4
        for (int i = task % NORM_PARTS * 32 + lane; i < quads; i += 32 * NORM_PARTS) {
            const float4 v = row[i];
            const float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
            sum = fmaf(a, a, sum), sum = fmaf(b, b, sum);  // spelled out: no choice left to the compiler
            sum = fmaf(c, c, sum), sum = fmaf(d, d, sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) squares[task] = sum;
    }
    __syncthreads();
    for (int task = threadIdx.x / 32; task < num_rows * NORM_PARTS; task += num_warps) {
        const int which = task / NORM_PARTS;
        const float4* row = (const float4*)row_at(which);
        const float mean = p.bias ? __fdividef(sum_of_parts(sums + which * NORM_PARTS), p.width) : 0.0f;
        const float factor = rsqrtf(__fdividef(sum_of_parts(squares + which * NORM_PARTS), p.width) + p.epsilon);
#pragma unroll 4
        for (int i = task % NORM_PARTS * 32 + lane; i < quads; i += 32 * NORM_PARTS) {
            const float4 v = row[i], w = ((const float4*)p.weight)[i];
            float4 n = make_float4((v.x - mean) * factor * w.x, (v.y - mean) * factor * w.y,
                                   (v.z - mean) * factor * w.z, (v.w - mean) * factor * w.w);
            if (p.bias) {
                const float4 b = ((const float4*)p.bias)[i];
                n.x = __fadd_rn(n.x, b.x), n.y = __fadd_rn(n.y, b.y);
                n.z = __fadd_rn(n.z, b.z), n.w = __fadd_rn(n.w, b.w);
            }
            store(which, 4 * i, n);
        }
    }
}
