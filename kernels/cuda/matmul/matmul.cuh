// y = x W^T on packed weights: what the kernels of matmul.cu share.
//
// Batch-invariant by construction: the columns of W are cut into `num_segments` ranges of whole units, a number fixed
// for each matrix. A segment's sum is one chain of tensor core products in the order of k, and the segments are added
// in order. Whether they are computed by the warps of one block, one after the other, or by several blocks, and with
// how many other tokens, changes nothing.
#pragma once
#include "../common/dequant.cuh"
#include "../norm/norm.cuh"

constexpr int RECIPROCAL_BITS = 20;
constexpr int MAX_SEGMENTS = 20;
constexpr int MAX_FEW_WARPS = 20;  // of a block of matmul_few or _lone*
constexpr int READY_CHUNKS = 2;    // of 64 columns, that a lone token's warps unpack while they wait for x

enum Epilogue { STORE_HALF, STORE_FLOAT, ADD_RESIDUAL, SWIGLU, CLAMPED_SWIGLU, GELU };

struct Params {
    const u8* weights;           // [experts] packed matrices
    const void* x;               // [num_x_rows, width] float16; matmul_lone_normed: float32
    const int* x_rows;           // [num_tokens] which row of x; null: in order
    const float* bias;           // [experts, num_rows], in the order of the packed rows; may be null
    const int* base;             // [experts, num_rows] MXFP4: largest exponent of each row
    void* out;                   // [num_out_rows, out_stride]: float16 or float32, see `Epilogue`
    float* partials;             // [num_segments, num_tokens, num_rows]: segments computed by several blocks
    const float* router_logits;  // [num_tokens / num_used, num_experts] matmul_lone_routed
    const int4* tiles;           // [num_tiles] matmul_tile: (expert, first token, number of tokens, -); may be null
    const int* num_tiles;        // [1]
    NormParams norm;             // matmul_lone_normed
    i64 expert_bytes;
    int num_rows;    // outputs
    int width;       // inputs
    int num_chunks;  // of 64 columns, the last one padded with zeros
    int num_units;   // of k
    int num_tokens;
    int num_segments;
    u32 segment_reciprocal;  // ceil(2^RECIPROCAL_BITS / num_segments): dividing takes many instructions
    int out_stride, out_column;
    int epilogue;
    int tiles_at_once;          // matmul_few, _lone: of a block
    int ring_at;                // matmul_few, _lone: where in shared memory weights are
    int beside;                 // matmul_few, _lone: what it reads was there before the kernel ahead began
    int num_experts, num_used;  // matmul_lone_routed
    int x_row_of_pair;          // matmul_lone_routed: each pair has a row of x of its own, not each token
    float alpha, limit;         // CLAMPED_SWIGLU
};

// A segment's first unit of k.
DEVICE int segment_start(int segment, const Params& p) {
    return (u64)(u32)(segment * p.num_units) * p.segment_reciprocal >> RECIPROCAL_BITS;
}

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
    DEVICE void compute_now() {
        ::compute_now(bias);
#if FORMAT == 11
        ::compute_now(factor);
#endif
    }
    DEVICE float of(float sum) const {
#if FORMAT == 11
        sum *= factor;
#endif
        return __fadd_rn(sum, bias);
    }
};

DEVICE float gelu(float y) {  // tanh form
    const float inner = 0.7978845608028654f * (y + 0.044715f * (y * y * y));
    return 0.5f * y * (1.0f + tanhf(inner));
}

DEVICE float gated(const Params& p, float gate, float up) {
    float steepness = 1.0f;
    if (p.epilogue == CLAMPED_SWIGLU) {
        gate = fminf(gate, p.limit), up = fminf(fmaxf(up, -p.limit), p.limit) + 1.0f;
        steepness = p.alpha;
    }
    return __fdividef(gate, 1.0f + __expf(-steepness * gate)) * up;
}

template <int EPILOGUE>
DEVICE void put(const Params& p, i64 at, float y) {
    if constexpr (EPILOGUE == STORE_HALF) ((u16*)p.out)[at] = to_half(y);
    if constexpr (EPILOGUE == STORE_FLOAT) ((float*)p.out)[at] = y;
    if constexpr (EPILOGUE == GELU) ((u16*)p.out)[at] = to_half(gelu(y));
}

DEVICE void put_gated(const Params& p, i64 at, float gate, float up) {
    ((u16*)p.out)[at] = to_half(gated(p, gate, up));
}

// One output of one token, or one pair of gate and up: where it goes and what its sums still need, loaded ahead.
struct Output {
    bool exists;
    i64 at;
    OutputRow own, up;
    float residual = 0.0f;  // is to be loaded once the kernels before are done

    DEVICE Output(const Params& p, int expert, i64 token, int row)
        : exists(row < p.num_rows),
          at(token * p.out_stride + p.out_column + (is_gated(p.epilogue) ? gated_column(row) : row)),
          own(p, expert, row),
          up(p, expert, is_gated(p.epilogue) ? row + 8 : p.num_rows) {}

    DEVICE void load_residual(const Params& p) {
        if (p.epilogue == ADD_RESIDUAL && exists) residual = ((const float*)p.out)[at];
    }
    DEVICE void finish(const Params& p, float sum, float up_sum) const {
        if (!exists) return;
        const float y = own.of(sum);
        if (p.epilogue == STORE_HALF) put<STORE_HALF>(p, at, y);
        if (p.epilogue == STORE_FLOAT) put<STORE_FLOAT>(p, at, y);
        if (p.epilogue == ADD_RESIDUAL) put<STORE_FLOAT>(p, at, __fadd_rn(residual, y));
        if (p.epilogue == GELU) put<GELU>(p, at, y);
        if (is_gated(p.epilogue)) put_gated(p, at, y, up.of(up_sum));
    }
};

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
