// Normalisation of one row by one warp: the same bits wherever it is done.
#pragma once
#include "common.cuh"

struct NormParams {
    const float* weight;  // [width]
    const float* bias;    // [width]; null: RMS norm, else layer norm
    float epsilon;
    int width;  // a multiple of 4
};

// `row` [width] -> normed, given to `store(column, four values)` 4 columns at a time.
template <typename Store>
DEVICE void normalise_row(const float* row, const NormParams& p, int lane, Store store) {
    const int quads = p.width / 4;
    const float4* values = (const float4*)row;
    float mean = 0.0f;
    if (p.bias) {
        float sum = 0.0f;
        for (int i = lane; i < quads; i += 32) {
            float4 v = values[i];
            sum += (v.x + v.y) + (v.z + v.w);
        }
        mean = warp_sum(sum) / p.width;
    }
    float squares = 0.0f;
#pragma unroll 8
    for (int i = lane; i < quads; i += 32) {
        float4 v = values[i];
        float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
        squares = fmaf(a, a, squares), squares = fmaf(b, b, squares);  // spelled out: no choice left to the compiler
        squares = fmaf(c, c, squares), squares = fmaf(d, d, squares);
    }
    const float factor = 1.0f / sqrtf(warp_sum(squares) / p.width + p.epsilon);
#pragma unroll 4
    for (int i = lane; i < quads; i += 32) {
        float4 v = values[i], w = ((const float4*)p.weight)[i];
        float4 n = make_float4((v.x - mean) * factor * w.x, (v.y - mean) * factor * w.y, (v.z - mean) * factor * w.z,
                               (v.w - mean) * factor * w.w);
        if (p.bias) {
            float4 b = ((const float4*)p.bias)[i];
            n.x = __fadd_rn(n.x, b.x), n.y = __fadd_rn(n.y, b.y), n.z = __fadd_rn(n.z, b.z), n.w = __fadd_rn(n.w, b.w);
        }
        store(4 * i, n);
    }
}
