// Rows of the residual stream -> normed float16 rows; one warp a row.
#include "norm.cuh"

struct Params {
    const float* x;   // [num_x_rows, width]
    const int* rows;  // [num_rows] which row of x; null: in order
    u16* out;         // [num_rows, width]
    NormParams norm;
    int num_rows;
};

KERNEL __launch_bounds__(256) norm_rows(const __grid_constant__ Params p) {
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= p.num_rows) return;
    const int source = p.rows ? p.rows[row] : row;
    u16* out = p.out + (i64)row * p.norm.width;
    normalise_row(p.x + (i64)source * p.norm.width, p.norm, threadIdx.x % 32, [&](int column, float4 n) {
        *(uint2*)(out + column) = make_uint2(pack_half2(n.x, n.y), pack_half2(n.z, n.w));
    });
}
