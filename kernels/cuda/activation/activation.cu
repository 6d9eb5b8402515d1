// Activations on their own.
#include "../common/common.cuh"

struct SwigluParams {
    const u16* both;  // [num_rows, 2 * width] gates, then up projections
    u16* out;         // [num_rows, width]
    int num_rows, width;
    float alpha, limit;  // of the clamped SwiGLU; limit 0: it is a plain one
};

struct GegluParams {
    SwigluParams rows;
    float scale;
};

// SwiGLU of gates and up projections that are float16 already, for those of two formats; all others go through
// `Epilogue::gated` of matmul_epilogue.cuh. The two are not one function, as their bits differ: this one divides
// exactly, `gated` with the fast division. Which of them a model takes never depends on the batch.
KERNEL __launch_bounds__(256) swiglu_rows(const __grid_constant__ SwigluParams p) {
    wait_for_previous();
    const i64 row = blockIdx.x;
    const int column = blockIdx.y * 256 + threadIdx.x;
    if (column >= p.width) return;
    float gate = from_half(p.both[row * 2 * p.width + column]), steepness = 1.0f;
    float up = from_half(p.both[row * 2 * p.width + p.width + column]);
    if (p.limit) {
        gate = fminf(gate, p.limit), up = fminf(fmaxf(up, -p.limit), p.limit) + 1.0f;
        steepness = p.alpha;
    }
    p.out[row * p.width + column] = to_half(gate / (1.0f + __expf(-steepness * gate)) * up);
}

// GELU in its tanh form: y / 2 * (1 + tanh(inner)) = y / (1 + exp(-2 inner)).
DEVICE float gelu(float y) {
    const float inner = 0.7978845608028654f * (y + 0.044715f * (y * y * y));
    return y / (1.0f + __expf(-2.0f * inner));
}

// GEGLU of the same.
KERNEL __launch_bounds__(256) geglu_rows(const __grid_constant__ GegluParams params) {
    wait_for_previous();
    const SwigluParams& p = params.rows;
    const i64 row = blockIdx.x;
    const int column = blockIdx.y * 256 + threadIdx.x;
    if (column >= p.width) return;
    const float gate = from_half(p.both[row * 2 * p.width + column]);
    const float up = from_half(p.both[row * 2 * p.width + p.width + column]);
    p.out[row * p.width + column] = to_half(gelu(gate) * up * params.scale);
}

struct GegluColumnsParams {
    const float* gates;   // [num_rows, width]
    const float* inputs;  // [num_rows, stride]
    u16* out;             // [num_rows, width]
    int width, stride, column;
    float gate_scale, scale;
};

// GEGLU of float32 gates and of some columns of what they let through.
KERNEL __launch_bounds__(256) geglu_columns(const __grid_constant__ GegluColumnsParams p) {
    wait_for_previous();
    const i64 row = blockIdx.x;
    const int column = blockIdx.y * 256 + threadIdx.x;
    if (column >= p.width) return;
    const float input = p.inputs[row * p.stride + p.column + column];
    p.out[row * p.width + column] = to_half(gelu(p.gates[row * p.width + column] * p.gate_scale) * input * p.scale);
}

struct GateParams {
    const u16* x;      // [num_rows, width]
    const u16* gates;  // [num_rows, width]
    u16* out;          // [num_rows, width], may be x
    i64 num_pairs;     // of neighbours, all rows together
};

// x * sigmoid(gates).
KERNEL __launch_bounds__(256) gate(const __grid_constant__ GateParams p) {
    wait_for_previous();
    const i64 pair = (i64)blockIdx.x * 256 + threadIdx.x;
    if (pair >= p.num_pairs) return;
    const u32 x = ((const u32*)p.x)[pair], y = ((const u32*)p.gates)[pair];
    ((u32*)p.out)[pair] =
        pack_half2(low_half(x) / (1.0f + __expf(-low_half(y))), high_half(x) / (1.0f + __expf(-high_half(y))));
}

struct NarrowParams {
    const float* x;  // [num_rows, width]
    u16* out;        // [num_rows, width]
    int width;
    float scale;
};

KERNEL __launch_bounds__(256) narrow(const __grid_constant__ NarrowParams p) {
    wait_for_previous();
    const int column = blockIdx.y * 256 + threadIdx.x;
    const i64 index = (i64)blockIdx.x * p.width + column;
    if (column < p.width) p.out[index] = to_half(p.x[index] * p.scale);
}
