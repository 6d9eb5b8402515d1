// What becomes of the sums of a product, once for all kernels: scale and bias of the row, activation or residual,
// store.
#pragma once
#include "../common/dequant.cuh"

struct OutputParams {
    void* out;           // [num_out_rows, stride]: float32 where `Epilogue::is_float`, else float16
    int stride, column;  // of a row of `out`: its length, and where the product's first column goes
    int epilogue;        // `EpilogueKind`: `Epilogue` of kernels/ops/matmul_params.py
    float alpha, limit;  // of CLAMPED_SWIGLU; else alpha is the cap of SOFTCAP, or the factor of GEGLU and float32
};

// With gated activations row g of a 16-row tile is a gate, row g + 8 its up projection, and the tile gives 8 outputs.
DEVICE int gated_column(int gate_row) { return (gate_row >> 4) * 8 + (gate_row & 7); }

// A row's scale and bias. The scale is made of its exponent where it is used, so that nothing waits for that before.
struct OutputRow {
    float bias = 0.0f;
    int exponent = 127;  // `has_row_base`

    DEVICE OutputRow() {}
    DEVICE OutputRow(const MatrixParams& matrix, int expert, int row) {
        if (row >= matrix.num_rows) return;
        const i64 at = (i64)expert * matrix.num_rows + row;
        if (matrix.bias) bias = matrix.bias[at];
        if constexpr (Layout<FORMAT>::has_row_base) exponent = matrix.base[at];
    }
    DEVICE float of(float sum) const {
        if constexpr (Layout<FORMAT>::has_row_base)  // 2^(exponent - 127)
            sum *= __uint_as_float(exponent ? (u32)exponent << 23 : 0x00400000u);
        return __fadd_rn(sum, bias);
    }
};

// GELU in its tanh form is y / 2 * (1 + tanh(inner)) = y / (1 + exp(-2 inner)).
DEVICE float gelu_inner(float y) { return 0.7978845608028654f * (y + 0.044715f * (y * y * y)); }
DEVICE float gelu(float y) { return 0.5f * y * (1.0f + tanhf(gelu_inner(y))); }

// This fails for a new kind, until `Epilogue` says what the kind does and the number here is raised.
static_assert(NUM_EPILOGUES == 8, "Epilogue must say what a new kind does");

// A functor; where `kind` is a constant, only what that kind asks for is compiled.
struct Epilogue {
    const OutputParams* output;
    int kind;

    DEVICE explicit Epilogue(const OutputParams& output) : Epilogue(output, output.epilogue) {}
    DEVICE Epilogue(const OutputParams& output, int kind) : output(&output), kind(kind) {}
    DEVICE constexpr explicit Epilogue(int kind) : output(nullptr), kind(kind) {}  // only to ask about a kind

    DEVICE constexpr bool is_gated() const { return kind == SWIGLU || kind == CLAMPED_SWIGLU || kind == GEGLU; }
    DEVICE constexpr bool is_float() const { return kind == STORE_FLOAT || kind == ADD_RESIDUAL || kind == SOFTCAP; }
    // Which element of `out` takes row `row` of the product, of gated activations that of the gate.
    DEVICE i64 index(i64 token, int row) const {
        return token * output->stride + output->column + (is_gated() ? gated_column(row) : row);
    }
    DEVICE void* address(i64 index) const { return (u8*)output->out + index * (is_float() ? 4 : 2); }

    // `y` and, of gated activations, `up`: sums with scale and bias. `residual`: what is at `to`, if it is to be added;
    // else -0, which changes no bit of a sum.
    DEVICE float value(float y, float up, float residual) const {
        if (is_float()) return kind == SOFTCAP ? softcap(y) : fmaf(y, output->alpha, residual);
        return is_gated() ? gated(y, up) : kind == GELU ? gelu(y) : y;
    }
    DEVICE void operator()(void* to, float y, float up, float residual) const {
        if (is_float())
            *(float*)to = value(y, up, residual);
        else
            *(u16*)to = to_half(value(y, up, residual));
    }

   private:
    DEVICE float softcap(float y) const { return output->alpha * tanhf(__fdiv_rn(y, output->alpha)); }
    // SwiGLU and GEGLU, with the fast division, whose result may be off by two units in the last place. activation.cu
    // has them with the exact one.
    DEVICE float gated(float gate, float up) const {
        if (kind == GEGLU) return __fdividef(gate, 1.0f + __expf(-2.0f * gelu_inner(gate))) * up * output->alpha;
        float steepness = 1.0f;
        if (kind == CLAMPED_SWIGLU) {
            gate = fminf(gate, output->limit), up = fminf(fmaxf(up, -output->limit), output->limit) + 1.0f;
            steepness = output->alpha;
        }
        return __fdividef(gate, 1.0f + __expf(-steepness * gate)) * up;
    }
};

constexpr float NO_RESIDUAL = -0.0f;

// Where one output of a token goes, and what it is added to.
struct Destination {
    Epilogue epilogue;
    void* to;
    float residual = NO_RESIDUAL;  // where one is added it is to be loaded, once the kernels before are done
    bool exists;

    DEVICE explicit Destination(const OutputParams& output) : epilogue(output), to(nullptr), exists(false) {}
    DEVICE Destination(const OutputParams& output, i64 token, int row, bool exists)
        : epilogue(output), to(epilogue.address(epilogue.index(token, row))), exists(exists) {}
    DEVICE void load_residual() {
        if (exists && epilogue.kind == ADD_RESIDUAL) residual = *(const float*)to;
    }
    DEVICE void store(float y, float up) const {
        if (exists) epilogue(to, y, up, residual);
    }
};

// One output, or one pair of gate and up, whose sums one thread has.
struct Output {
    Destination destination;
    OutputRow own, up;

    DEVICE Output(const MatrixParams& matrix, const OutputParams& output, int expert, i64 token, int row)
        : destination(output, token, row, row < matrix.num_rows),
          own(matrix, expert, row),
          up(matrix, expert, destination.epilogue.is_gated() ? row + 8 : matrix.num_rows) {}

    DEVICE void finish(float sum, float up_sum) const {
        destination.store(own.of(sum), destination.epilogue.is_gated() ? up.of(up_sum) : 0.0f);
    }
};
