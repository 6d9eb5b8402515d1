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

// With gated activations row g of a 16-row tile is a gate, row g + 8 its up projection, and the tile gives 8 outputs.
DEVICE bool is_gated(int epilogue) { return epilogue == SWIGLU || epilogue == CLAMPED_SWIGLU; }
DEVICE int gated_column(int gate_row) { return (gate_row >> 4) * 8 + (gate_row & 7); }

// What a row's sums become before the epilogue.
struct OutputRow {
    float factor = 1.0f, bias = 0.0f;
    DEVICE OutputRow(const Params& p, int expert, int row) {
        if (row >= p.num_rows) return;
        const i64 at = (i64)expert * p.num_rows + row;
        if (p.bias) bias = p.bias[at];
#if FORMAT == 11
        const int exponent = p.base[at];
        factor = __uint_as_float(exponent ? (u32)exponent << 23 : 0x00400000u);  // 2^(exponent - 127)
#endif
    }
    DEVICE float of(float sum) const {
#if FORMAT == 11
        sum *= factor;
#endif
        return __fadd_rn(sum, bias);
    }
};

template <int EPILOGUE>
DEVICE void put(const Params& p, i64 at, float y) {
    if constexpr (EPILOGUE == STORE_HALF) ((u16*)p.out)[at] = to_half(y);
    if constexpr (EPILOGUE == STORE_FLOAT) ((float*)p.out)[at] = y;
    if constexpr (EPILOGUE == ADD_RESIDUAL) ((float*)p.out)[at] = __fadd_rn(((float*)p.out)[at], y);
    if constexpr (EPILOGUE == GELU) {  // tanh form
        const float inner = 0.7978845608028654f * (y + 0.044715f * (y * y * y));
        ((u16*)p.out)[at] = to_half(0.5f * y * (1.0f + tanhf(inner)));
    }
}

DEVICE void put_gated(const Params& p, i64 at, float gate, float up) {
    float steepness = 1.0f;
    if (p.epilogue == CLAMPED_SWIGLU) {
        gate = fminf(gate, p.limit), up = fminf(fmaxf(up, -p.limit), p.limit) + 1.0f;
        steepness = p.alpha;
    }
    ((u16*)p.out)[at] = to_half(__fdividef(gate, 1.0f + __expf(-steepness * gate)) * up);
}

// One output, or one pair of gate and up (`up_sum`).
DEVICE void finish(const Params& p, int expert, i64 token, int row, float sum, float up_sum) {
    if (row >= p.num_rows) return;
    const i64 line = token * p.out_stride + p.out_column;
    const float y = OutputRow(p, expert, row).of(sum);
    if (p.epilogue == STORE_HALF) put<STORE_HALF>(p, line + row, y);
    if (p.epilogue == STORE_FLOAT) put<STORE_FLOAT>(p, line + row, y);
    if (p.epilogue == ADD_RESIDUAL) put<ADD_RESIDUAL>(p, line + row, y);
    if (p.epilogue == GELU) put<GELU>(p, line + row, y);
    if (is_gated(p.epilogue)) put_gated(p, line + gated_column(row), y, OutputRow(p, expert, row + 8).of(up_sum));
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
        finish(p, expert, first_token + token, row, sum[i], sum[i + 2]);
        if (!is_gated(p.epilogue)) finish(p, expert, first_token + token, row + 8, sum[i + 2], 0.0f);
    }
}
