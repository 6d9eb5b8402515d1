// Rows of the residual stream -> normed float16 rows; one block a row.
#include "norm.cuh"

struct Params {
    const float* x;   // [num_x_rows, width]
    const int* rows;  // [num_rows] which row of x; null: in order
    u16* out;         // [num_rows, width]
    NormParams norm;
};

KERNEL __launch_bounds__(256) norm_rows(const __grid_constant__ Params p) {
    wait_for_previous();
    __shared__ float shared[2 * NORM_PARTS];
    const i64 row = blockIdx.x, source = p.rows ? p.rows[row] : row;
    normalise_rows(
        p.norm, p.norm.weight, 1, shared, [&](int) { return p.x + source * p.norm.width; },
        [&](int, int column, float4 n) {
            *(uint2*)(p.out + row * p.norm.width + column) = make_uint2(pack_half2(n.x, n.y), pack_half2(n.z, n.w));
        });
}
