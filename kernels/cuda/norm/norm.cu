// Rows of the residual stream -> normed float16 rows; or float32 rows -> normed and added to the residual stream.
//   norm_rows        a block has a row, a warp a partition of it
//   norm_short_rows  for many rows of up to PARTITION_STEP columns: a warp has a row, a lane four columns of each
//   partition
//   norm_residual    a block has a row, as in norm_rows
//   norm_stream      the same, and it is stored instead
//   norm_branches    the same for the sum of two rows that have norms of their own
#include "norm.cuh"

struct NormRowsParams {
    const float* x;   // [num_x_rows, width]
    const int* rows;  // [num_rows] which row of x; null: in order
    void* out;        // [num_rows, width] float16; norm_residual: float32, added to; norm_stream: float32, may be x
    NormParams norm;
    int num_rows;
    float scale;  // norm_residual: of what `out` then is
};

DEVICE i64 source_row(const NormRowsParams& p, i64 row) { return p.rows ? p.rows[row] : row; }

DEVICE void store_normed(const NormRowsParams& p, i64 row, int column, float4 n) {
    *(uint2*)((u16*)p.out + row * p.norm.width + column) = pack_quad(n);
}

// Of rows that registers hold, weights are there before the row is.
KERNEL __launch_bounds__(32 * NORM_PARTITIONS, 5) norm_rows(const __grid_constant__ NormRowsParams p) {
    const int width = p.norm.width;
    const bool is_kept = width <= ROW_QUADS * PARTITION_STEP;
    NormRow kept;
    float4 weights[ROW_QUADS];
    if (p.rows && threadIdx.x == 0) prefetch(p.rows + blockIdx.x);
    if (is_kept)
        kept.for_columns(width,
                         [&](int quad, int column) { weights[quad] = *(const float4*)(p.norm.weight + column); });
    wait_for_previous();
    __shared__ float shared[2 * NORM_PARTITIONS];
    const i64 row = blockIdx.x;
    const float* x = p.x + source_row(p, row) * width;
    auto store = [&](int column, float4 n) { store_normed(p, row, column, n); };
    if (!is_kept) return normalise_row(p.norm, x, shared, store);
    kept.load(x, width);
    kept.scale(p.norm, weights, kept.centre(p.norm, shared), store);
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

KERNEL __launch_bounds__(32 * NORM_PARTITIONS) norm_stream(const __grid_constant__ NormRowsParams p) {
    wait_for_previous();
    __shared__ float shared[2 * NORM_PARTITIONS];
    const i64 first = (i64)blockIdx.x * p.norm.width;
    normalise_row(p.norm, p.x + first, shared,
                  [&](int column, float4 n) { *(float4*)((float*)p.out + first + column) = n; });
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

struct NormBranchesParams {
    const float* a;  // [num_rows, width]
    const float* b;  // [num_rows, width]
    float* out;      // [num_rows, width] residual stream, added to
    NormParams norm_a, norm_b, norm;
    float scale;  // of what `out` then is
};

// The factor of the RMS norm of a row, whose values in four columns are `values(column)`. All threads call it.
template <typename Values>
DEVICE float rms_factor(const NormParams& norm, float* sums, Values values) {
    float squares = 0.0f;
    for (int column = threadIdx.x * 4; column < norm.width; column += PARTITION_STEP)
        squares = add_squares(squares, values(column));
    put_partition(sums, squares);
    return norm_factor(norm, row_sum(sums));
}

KERNEL __launch_bounds__(32 * NORM_PARTITIONS) norm_branches(const __grid_constant__ NormBranchesParams p) {
    wait_for_previous();
    __shared__ float sums[3][NORM_PARTITIONS];
    const i64 row = (i64)blockIdx.x * p.norm.width;
    auto load = [&](const float* rows, int column) { return *(const float4*)(rows + row + column); };
    const float factor_a = rms_factor(p.norm_a, sums[0], [&](int column) { return load(p.a, column); });
    const float factor_b = rms_factor(p.norm_b, sums[1], [&](int column) { return load(p.b, column); });
    auto sum = [&](int column) {
        const float4 wa = *(const float4*)(p.norm_a.weight + column), wb = *(const float4*)(p.norm_b.weight + column);
        const float4 a = scale_quad(p.norm_a, wa, column, load(p.a, column), factor_a);
        const float4 b = scale_quad(p.norm_b, wb, column, load(p.b, column), factor_b);
        return float4{__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w)};
    };
    const float factor = rms_factor(p.norm, sums[2], sum);
    for (int column = threadIdx.x * 4; column < p.norm.width; column += PARTITION_STEP) {
        float4* to = (float4*)(p.out + row + column);
        const float4 old = *to, w = *(const float4*)(p.norm.weight + column);
        const float4 n = scale_quad(p.norm, w, column, sum(column), factor);
        *to =
            float4{(old.x + n.x) * p.scale, (old.y + n.y) * p.scale, (old.z + n.z) * p.scale, (old.w + n.w) * p.scale};
    }
}
