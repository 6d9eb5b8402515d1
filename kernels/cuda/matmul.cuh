// y = x W^T on packed weights: what the kernels of matmul.cu share.
//
// Batch-invariant by construction: the columns of W are cut into `num_segments` ranges of 64-column chunks, a number
// fixed for each matrix. A segment's sum is one chain of tensor core products in the order of k, and the segments are
// added in order. Whether they are computed by the warps of one block, one after the other, or by several blocks,
// and with how many other tokens, changes nothing.
#pragma once
#include "dequant.cuh"
#include "norm.cuh"

enum Epilogue { STORE_HALF, STORE_FLOAT, ADD_RESIDUAL, SWIGLU, CLAMPED_SWIGLU, GELU };
enum Input { HALF_ROWS, NORMED_ROWS };

struct Params {
    const u8* weights;         // [experts] packed matrices
    const void* x;             // [num_x_rows, width] float16, or float32 to be normed
    const int* x_rows;         // [num_tokens] which row of x; null: in order
    const float* bias;         // [experts, num_rows], in the order of the packed rows; may be null
    const int* base;           // [experts, num_rows] MXFP4: largest exponent of each row
    void* out;                 // [num_out_rows, out_stride]: float16 or float32, see `Epilogue`
    float* partials;           // [num_segments, num_tokens, num_rows]: segments computed by several blocks
    const int* token_experts;  // [num_tokens] matmul_few: expert of each row of blocks; may be null
    const int4* tiles;         // [num_tiles] matmul_tile: (expert, first token, number of tokens, -); may be null
    const int* num_tiles;      // [1]
    NormParams norm;           // NORMED_ROWS
    i64 expert_bytes;
    int num_rows;     // outputs
    int width;        // inputs
    int num_chunks;   // of 64 columns, the last one padded with zeros
    int num_units;    // of k
    int num_tokens;
    int num_segments;
    int out_stride, out_column;
    int input, epilogue;
    int ring_at;  // matmul_few: where in shared memory the weights are
    float alpha, limit;  // CLAMPED_SWIGLU
};

DEVICE int segment_start(int segment, const Params& p) { return segment * p.num_chunks / p.num_segments; }

// Sums of a tile's rows g and g + 8 -> out. With gated activations row g is a gate, row g + 8 its up projection, and
// a tile of 16 rows gives 8 outputs.
DEVICE bool is_gated(int epilogue) { return epilogue == SWIGLU || epilogue == CLAMPED_SWIGLU; }

DEVICE float scaled(const Params& p, int expert, int row, float sum) {
#if FORMAT == 11
    int exponent = p.base[(i64)expert * p.num_rows + row];
    sum *= __uint_as_float(exponent ? (u32)exponent << 23 : 0x00400000u);  // 2^(exponent - 127)
#endif
    return p.bias ? __fadd_rn(sum, p.bias[(i64)expert * p.num_rows + row]) : sum;
}

DEVICE void finish(const Params& p, int expert, i64 token, int row, float sum) {
    if (row >= p.num_rows) return;
    float y = scaled(p, expert, row, sum);
    i64 at = token * p.out_stride + p.out_column + row;
    if (p.epilogue == STORE_HALF) ((u16*)p.out)[at] = to_half(y);
    if (p.epilogue == STORE_FLOAT) ((float*)p.out)[at] = y;
    if (p.epilogue == ADD_RESIDUAL) ((float*)p.out)[at] = __fadd_rn(((float*)p.out)[at], y);
    if (p.epilogue == GELU) {  // tanh form
        float inner = 0.7978845608028654f * (y + 0.044715f * (y * y * y));
        ((u16*)p.out)[at] = to_half(0.5f * y * (1.0f + tanhf(inner)));
    }
}

DEVICE void finish_gated(const Params& p, int expert, i64 token, int gate_row, float gate_sum, float up_sum) {
    if (gate_row >= p.num_rows) return;
    float gate = scaled(p, expert, gate_row, gate_sum), up = scaled(p, expert, gate_row + 8, up_sum);
    float steepness = 1.0f;
    if (p.epilogue == CLAMPED_SWIGLU) {
        gate = fminf(gate, p.limit), up = fminf(fmaxf(up, -p.limit), p.limit) + 1.0f;
        steepness = p.alpha;
    }
    int column = (gate_row >> 4) * 8 + (gate_row & 7);
    float activated = gate / (1.0f + __expf(-steepness * gate)) * up;
    ((u16*)p.out)[token * p.out_stride + p.out_column + column] = to_half(activated);
}

DEVICE RowBase row_base(const Params& p, int expert, int tile, int lane) {
    RowBase result = {{0, 0}};
#if FORMAT == 11
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = tile * 16 + 8 * half + (lane >> 2);
        if (row < p.num_rows) result.base[half] = p.base[(i64)expert * p.num_rows + row];
    }
#endif
    return result;
}

// Sums of a tile's 16 rows and 8 tokens, as they lie in a warp's fragment, -> out.
DEVICE void finish_fragment(const Params& p, int expert, i64 first_token, int num_tokens, int tile, int lane,
                            const float (&sum)[4]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int token = 2 * (lane & 3) + i, row = tile * 16 + (lane >> 2);
        if (token >= num_tokens) continue;
        if (is_gated(p.epilogue)) {
            finish_gated(p, expert, first_token + token, row, sum[i], sum[i + 2]);
        } else {
            finish(p, expert, first_token + token, row, sum[i]);
            finish(p, expert, first_token + token, row + 8, sum[i + 2]);
        }
    }
}
