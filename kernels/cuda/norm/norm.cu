// Rows of the residual stream -> normed float16 rows.
//   norm_rows        a block has a row, a warp a part of it
//   norm_short_rows  for many rows of up to PART_STEP columns: a warp has a row, a lane four columns of each part
#include "norm.cuh"

struct Params {
    const float* x;   // [num_x_rows, width]
    const int* rows;  // [num_rows] which row of x; null: in order
    u16* out;         // [num_rows, width]
    NormParams norm;
    int num_rows;
};

DEVICE i64 source_row(const Params& p, i64 row) { return p.rows ? p.rows[row] : row; }

DEVICE void store_normed(const Params& p, i64 row, int column, float4 n) {
    *(uint2*)(p.out + row * p.norm.width + column) = pack_quad(n);
}

KERNEL __launch_bounds__(32 * NORM_PARTS, 6) norm_rows(const __grid_constant__ Params p) {
    wait_for_previous();
    __shared__ float shared[2 * NORM_PARTS];
    const i64 row = blockIdx.x, source = source_row(p, row);
    normalise_row(p.norm, p.x + source * p.norm.width, shared,
                  [&](int column, float4 n) { store_normed(p, row, column, n); });
}

constexpr int WARPS = 8;

// Calls use(part, column) for this lane's columns.
template <typename Use>
DEVICE void for_parts(int width, Use use) {
#pragma unroll
    for (int part = 0; part < NORM_PARTS; part++) {
        const int column = part_column(part);
        if (column < width) use(part, column);
    }
}

DEVICE float sum_over_lanes(float (&parts)[NORM_PARTS]) {
#pragma unroll
    for (int part = 0; part < NORM_PARTS; part++) parts[part] = warp_sum(parts[part]);
    return sum_of_parts(parts);
}

KERNEL __launch_bounds__(WARPS * 32) norm_short_rows(const __grid_constant__ Params p) {
    wait_for_previous();
    const i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= p.num_rows) return;
    const int width = p.norm.width;
    const float* x = p.x + source_row(p, row) * width;
    float4 v[NORM_PARTS];
    for_parts(width, [&](int part, int column) { v[part] = *(const float4*)(x + column); });
    float shift = 0.0f;
    if (p.norm.bias) {
        float sums[NORM_PARTS] = {};
        for_parts(width, [&](int part, int) { sums[part] += (v[part].x + v[part].y) + (v[part].z + v[part].w); });
        shift = minus_mean(p.norm, sum_over_lanes(sums));
    }
    float squares[NORM_PARTS] = {};
    for_parts(width, [&](int part, int) {
        v[part] = sum_of(v[part], shift);
        squares[part] = add_squares(squares[part], v[part]);
    });
    const float factor = norm_factor(p.norm, sum_over_lanes(squares));
    for_parts(width, [&](int part, int column) {
        store_normed(p, row, column,
                     scale_quad(p.norm, *(const float4*)(p.norm.weight + column), column, v[part], factor));
    });
}
