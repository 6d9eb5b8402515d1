// Rows of the residual stream -> normed float16 rows; or float32 rows -> normed and added to the residual stream.
//   norm_rows        a block has a row, a warp a partition of it
//   norm_short_rows  for many rows of up to PARTITION_STEP columns: a warp has a row, a lane four columns of each
//   partition
//   norm_residual    a block has a row, as in norm_rows
#include "norm.cuh"

struct NormRowsParams {
    const float* x;   // [num_x_rows, width]
    const int* rows;  // [num_rows] which row of x; null: in order
    void* out;        // [num_rows, width] float16; norm_residual: float32, added to
    NormParams norm;
    int num_rows;
    float scale;  // norm_residual: of what `out` then is
};

DEVICE i64 source_row(const NormRowsParams& p, i64 row) { return p.rows ? p.rows[row] : row; }

DEVICE void store_normed(const NormRowsParams& p, i64 row, int column, float4 n) {
    *(uint2*)((u16*)p.out + row * p.norm.width + column) = pack_quad(n);
}

KERNEL __launch_bounds__(32 * NORM_PARTITIONS, 6) norm_rows(const __grid_constant__ NormRowsParams p) {
    wait_for_previous();
    __shared__ float shared[2 * NORM_PARTITIONS];
    const i64 row = blockIdx.x, source = source_row(p, row);
    normalise_row(p.norm, p.x + source * p.norm.width, shared,
                  [&](int column, float4 n) { store_normed(p, row, column, n); });
}

KERNEL __launch_bounds__(32 * NORM_PARTITIONS, 5) norm_residual(const __grid_constant__ NormRowsParams p) {
    wait_for_previous();
    __shared__ float shared[2 * NORM_PARTITIONS];
    const i64 row = blockIdx.x;
    normalise_row(p.norm, p.x + row * p.norm.width, shared, [&](int column, float4 n) {
        float4* to = (float4*)((float*)p.out + row * p.norm.width + column);
        const float4 old = *to;
        *to =
            float4{(old.x + n.x) * p.scale, (old.y + n.y) * p.scale, (old.z + n.z) * p.scale, (old.w + n.w) * p.scale};
    });
}

// Calls use(partition, column) for this lane's columns.
template <typename Use>
DEVICE void for_partitions(int width, Use use) {
#pragma unroll
    for (int partition = 0; partition < NORM_PARTITIONS; partition++) {
        const int column = partition_column(partition);
        if (column < width) use(partition, column);
    }
}

DEVICE float sum_over_lanes(float (&sums)[NORM_PARTITIONS]) {
#pragma unroll
    for (int partition = 0; partition < NORM_PARTITIONS; partition++) sums[partition] = warp_sum(sums[partition]);
    return row_sum(sums);
}

KERNEL __launch_bounds__(SHORT_WARPS * 32) norm_short_rows(const __grid_constant__ NormRowsParams p) {
    wait_for_previous();
    const i64 row = (i64)blockIdx.x * SHORT_WARPS + threadIdx.x / 32;
    if (row >= p.num_rows) return;
    const int width = p.norm.width;
    const float* x = p.x + source_row(p, row) * width;
    float4 v[NORM_PARTITIONS];
    for_partitions(width, [&](int partition, int column) { v[partition] = *(const float4*)(x + column); });
    float shift = 0.0f;
    if (p.norm.bias) {
        float sums[NORM_PARTITIONS] = {};
        for_partitions(width, [&](int partition, int) {
            sums[partition] += (v[partition].x + v[partition].y) + (v[partition].z + v[partition].w);
        });
        shift = minus_mean(p.norm, sum_over_lanes(sums));
    }
    float squares[NORM_PARTITIONS] = {};
    for_partitions(width, [&](int partition, int) {
        v[partition] = sum_of(v[partition], shift);
        squares[partition] = add_squares(squares[partition], v[partition]);
    });
    const float factor = norm_factor(p.norm, sum_over_lanes(squares));
    for_partitions(width, [&](int partition, int column) {
        store_normed(p, row, column,
                     scale_quad(p.norm, *(const float4*)(p.norm.weight + column), column, v[partition], factor));
    });
}
