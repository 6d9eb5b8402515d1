// The packed layout of weights, and a lane's words of it.
//
// A matrix [rows, k] is cut into units of 16 rows x UNIT_K columns (64; 256 for the K formats, whose super-blocks are
// that wide), in the order [64-row block][unit of k][4 units of 16 rows]. A unit holds exactly the numbers of the file,
// in planes aligned to 16 bytes. Lane 4g + t of a warp owns rows g and g + 8 of a unit and, in step s of 16 columns of
// a 64-column chunk, the columns 16s + 8j + 2t + e (j, e in 0, 1): the places of a 16 x 16 fragment. Its codes lie so
// that one mask yields two of them 16 bits apart: pair q = 2s + j of a row, e the half. Indices of points are shared by
// the four lanes of a row, and so are scales.
//
// `FormatTraits` and its enumerations are made of the table in `kernels/weights/formats.py`.
#pragma once
#include "common.cuh"

// Where a unit has what, and how it is to be read.
template <int F>
struct Layout : FormatTraits<F> {
    using T = FormatTraits<F>;
    static constexpr bool has_grid = T::codes == GRID;
    static constexpr u32 low_mask = (1ull << T::low_bits) - 1;
    static constexpr bool is_k = T::chunks > 1;  // 64-column chunks of a unit
    // Codes of a chunk lie in planes of 16 bytes for each lane (each row pair g, of points) and one of `rest_words`.
    static constexpr int code_owners = has_grid ? 8 : 32, code_words = T::code_bytes / 4 / code_owners;
    static constexpr int code_planes = code_words / 4, rest_words = code_words % 4;
    static constexpr int rest_at = code_planes * code_owners * 16;
    DEVICE static int code_owner(int lane) { return has_grid ? lane >> 2 : lane; }
    static constexpr int high_at = T::chunks * T::code_bytes;
    static constexpr int scale_at = high_at + T::chunks * T::high_bytes;
    static constexpr int super_at = scale_at + T::chunks * T::scale_bytes;
    static_assert(T::unit_bytes == super_at + T::super_bytes, "planes: codes, high bits, scales; super-scales");
};

// One matrix [num_rows, width], or as many as there are experts, and how a product on it is cut. First comes what
// weights are asked for with: see `SmallBatchParams`.
struct MatrixParams {
    u8* packed;  // [num_experts, expert_bytes]
    int num_partitions;
    u32 partition_reciprocal;  // ceil(2^RECIPROCAL_BITS / num_partitions): dividing takes many instructions
    int num_rows;              // outputs
    int width;                 // inputs
    int num_chunks;            // of 64 columns, the last one padded with zeros
    int num_units;             // of k
    i64 expert_bytes;
    int* base;          // [num_experts, num_rows] `has_row_base`: largest exponent of each row
    const float* bias;  // [num_experts, num_rows], in the order of the packed rows; may be null
};

// Where chunk `chunk` of the 16-row tile `tile` begins: its unit, for a matrix of `num_units` units of k in a row.
template <int F>
DEVICE const u8* unit_address(const u8* matrix, int tile, int chunk, int num_units) {
    i64 unit = ((i64)(tile >> 2) * num_units + chunk / Layout<F>::chunks) * 4 + (tile & 3);
    return matrix + unit * Layout<F>::unit_bytes;
}

// What a lane needs of one chunk, as loaded: two rows x 16 columns.
template <int F>
struct Raw {
    using L = Layout<F>;
    u32 code[L::code_words];
    u32 high[2];
    u32 scale[4];
    u32 super[2];

    // Numbers that are not scaled, from global memory.
    DEVICE void load(const u8* unit, int lane) {
#pragma unroll
        for (int plane = 0; plane < L::code_planes; plane++) {
            uint4 v = load_streaming((const uint4*)(unit + plane * 512 + lane * 16));
            code[4 * plane] = v.x, code[4 * plane + 1] = v.y, code[4 * plane + 2] = v.z, code[4 * plane + 3] = v.w;
        }
    }
    // Loads from a unit in shared memory; `sub`: which of its chunks.
    DEVICE void load_shared(u32 unit, int sub, int lane) {
        const int g = lane >> 2, owner = L::code_owner(lane);
        const u32 codes = unit + sub * L::code_bytes;
#pragma unroll
        for (int plane = 0; plane < L::code_planes; plane++)
            load_words<4>(code + 4 * plane, codes + (plane * L::code_owners + owner) * 16);
        if constexpr (L::rest_words)
            load_words<L::rest_words>(code + 4 * L::code_planes, codes + L::rest_at + owner * (4 * L::rest_words));
        if constexpr (L::high_bytes)
            load_words<L::high_bytes / 128>(high,
                                            unit + L::high_at + sub * L::high_bytes + lane * (L::high_bytes / 32));
        if constexpr (L::scale_bytes)
            load_words<L::scale_bytes / 32>(scale,
                                            unit + L::scale_at + sub * L::scale_bytes + g * (L::scale_bytes / 8));
        if constexpr (L::super_bytes)
            load_words<L::super_bytes / 32>(super, unit + L::super_at + g * (L::super_bytes / 8));
    }
};

// The same in another way through shared memory: each lane copies, ahead of time, what it will read itself, so that a
// warp needs no barrier. A stage of `bytes` a warp holds a chunk: planes of the lanes' words, the widest first.
template <int F>
struct Staged {
    using L = Layout<F>;
    static constexpr int rest = 4 * L::rest_words, scale = L::scale_bytes / 8, high = L::high_bytes / 32,
                         super = L::super_bytes / 8;  // bytes of a lane
    static constexpr int rest_at = 512 * L::code_planes, scale_at = rest_at + 32 * rest,
                         high_at = scale_at + 32 * scale, super_at = high_at + 32 * high, bytes = super_at + 32 * super;

    DEVICE static void copy(u32 stage, const u8* unit, int sub, int lane) {  // `sub`: which of the unit's chunks
        const int g = lane >> 2, owner = L::code_owner(lane);
        const u8* codes = unit + sub * L::code_bytes;
#pragma unroll
        for (int plane = 0; plane < L::code_planes; plane++)
            copy_words<16>(stage + plane * 512 + lane * 16, codes + (plane * L::code_owners + owner) * 16);
        if constexpr (rest) copy_words<rest>(stage + rest_at + lane * rest, codes + L::rest_at + owner * rest);
        if constexpr (scale)
            copy_words<scale>(stage + scale_at + lane * scale, unit + L::scale_at + sub * L::scale_bytes + g * scale);
        if constexpr (high)
            copy_words<high>(stage + high_at + lane * high, unit + L::high_at + sub * L::high_bytes + lane * high);
        if constexpr (super) copy_words<super>(stage + super_at + lane * super, unit + L::super_at + g * super);
    }
    DEVICE static void load(Raw<F>& raw, u32 stage, int lane) {
#pragma unroll
        for (int plane = 0; plane < L::code_planes; plane++)
            load_words<4>(raw.code + 4 * plane, stage + plane * 512 + lane * 16);
        if constexpr (rest) load_words<rest / 4>(raw.code + 4 * L::code_planes, stage + rest_at + lane * rest);
        if constexpr (scale) load_words<scale / 4>(raw.scale, stage + scale_at + lane * scale);
        if constexpr (high) load_words<high / 4>(raw.high, stage + high_at + lane * high);
        if constexpr (super) load_words<super / 4>(raw.super, stage + super_at + lane * super);
    }
};
