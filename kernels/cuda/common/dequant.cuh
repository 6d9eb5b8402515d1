// Weights in their packed layout -> float16 fragments of the tensor core's A operand.
//
// A matrix [rows, k] is cut into units of 16 rows x UNIT_K columns (64; 256 for the K formats, whose super-blocks are
// that wide), in the order [64-row block][unit of k][4 units of 16 rows]. A unit holds exactly the numbers of the file,
// in planes aligned to 16 bytes. Lane 4g + t of a warp owns rows g and g + 8 of a unit and, in step s of 16 columns of
// a 64-column chunk, the columns 16s + 8j + 2t + e (j, e in 0, 1): the places of a 16 x 16 fragment. Its codes lie so
// that one mask yields two of them 16 bits apart: pair q = 2s + j of a row, e the half.
//
// `FormatTraits` and its enumerations are made of the table in `kernels/weights/formats.py`. Here is how bits become
// numbers.
#pragma once
#include "common.cuh"

// Where a unit has what, and how it is to be read.
template <int F>
struct Layout : FormatTraits<F> {
    using T = FormatTraits<F>;
    static constexpr bool has_nibbles = T::code_bits < 8;  // low bits of codes
    static constexpr bool is_k = T::chunks > 1;            // 64-column chunks of a unit
    static constexpr int high_at = T::chunks * T::code_bytes;
    static constexpr int scale_at = high_at + T::chunks * T::high_bytes;
    static constexpr int super_at = scale_at + T::chunks * T::scale_bytes;
    static_assert(T::unit_bytes == super_at + T::super_bytes, "planes: codes, high bits, scales; super-scales");
};

// One matrix [num_rows, width], or as many as there are experts, and how a product on it is cut. The order of the
// fields is one with which matmul_gemv_normed needs few registers.
struct MatrixParams {
    int num_partitions;
    u32 partition_reciprocal;  // ceil(2^RECIPROCAL_BITS / num_partitions): dividing takes many instructions
    int num_rows;              // outputs
    int width;                 // inputs
    int num_chunks;            // of 64 columns, the last one padded with zeros
    int num_units;             // of k
    i64 expert_bytes;
    u8* packed;         // [num_experts, expert_bytes]
    int* base;          // [num_experts, num_rows] EXPONENT: largest exponent of each row
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
    static constexpr int num_words = Layout<F>::code_bytes / 128;
    u32 code[num_words];
    u32 high[2];
    u32 scale[4];
    u32 super[2];

    DEVICE void load(const u8* unit, int chunk, int lane) {
        using L = Layout<F>;
        const int sub = chunk % L::chunks;
        const u8* codes = unit + sub * L::code_bytes;
#pragma unroll
        for (int plane = 0; plane < num_words / 4; plane++) {
            uint4 v = load_streaming((const uint4*)(codes + plane * 512 + lane * 16));
            code[4 * plane] = v.x, code[4 * plane + 1] = v.y, code[4 * plane + 2] = v.z, code[4 * plane + 3] = v.w;
        }
        if constexpr (L::high_bytes == 128) high[0] = *(const u32*)(unit + L::high_at + sub * 128 + lane * 4);
        if constexpr (L::high_bytes == 256) {
            uint2 v = *(const uint2*)(unit + L::high_at + sub * 256 + lane * 8);
            high[0] = v.x, high[1] = v.y;
        }
        const u8* scales = unit + L::scale_at + sub * L::scale_bytes;
        const int g = lane >> 2;
        if constexpr (L::scale_bytes == 32) scale[0] = *(const u32*)(scales + g * 4);
        if constexpr (L::scale_bytes == 64) {
            uint2 v = *(const uint2*)(scales + g * 8);
            scale[0] = v.x, scale[1] = v.y;
        }
        if constexpr (L::scale_bytes == 128) {
            uint4 v = *(const uint4*)(scales + g * 16);
            scale[0] = v.x, scale[1] = v.y, scale[2] = v.z, scale[3] = v.w;
        }
        if constexpr (L::super_bytes == 64) {
            uint2 v = *(const uint2*)(unit + L::super_at + g * 8);
            super[0] = v.x, super[1] = v.y;
        }
        if constexpr (L::super_bytes == 32) super[0] = *(const u32*)(unit + L::super_at + g * 4);
    }
    // Loads from a unit in shared memory; `sub`: which of its chunks.
    DEVICE void load_shared(u32 unit, int sub, int lane) {
        using L = Layout<F>;
        const int g = lane >> 2;
#pragma unroll
        for (int plane = 0; plane < num_words / 4; plane++)
            load_words<4>(code + 4 * plane, unit + sub * L::code_bytes + plane * 512 + lane * 16);
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
    static constexpr int code = L::code_bytes / 32, scale = L::scale_bytes / 8, high = L::high_bytes / 32,
                         super = L::super_bytes / 8;  // bytes of a lane
    static constexpr int scale_at = 32 * code, high_at = scale_at + 32 * scale, super_at = high_at + 32 * high,
                         bytes = super_at + 32 * super;

    DEVICE static void copy(u32 stage, const u8* unit, int sub, int lane) {  // `sub`: which of the unit's chunks
        const int g = lane >> 2;
#pragma unroll
        for (int plane = 0; plane < code / 16; plane++)
            copy_words<16>(stage + plane * 512 + lane * 16, unit + sub * L::code_bytes + plane * 512 + lane * 16);
        if constexpr (scale)
            copy_words<scale>(stage + scale_at + lane * scale, unit + L::scale_at + sub * L::scale_bytes + g * scale);
        if constexpr (high)
            copy_words<high>(stage + high_at + lane * high, unit + L::high_at + sub * L::high_bytes + lane * high);
        if constexpr (super) copy_words<super>(stage + super_at + lane * super, unit + L::super_at + g * super);
    }
    DEVICE static void load(Raw<F>& raw, u32 stage, int lane) {
#pragma unroll
        for (int plane = 0; plane < code / 16; plane++)
            load_words<4>(raw.code + 4 * plane, stage + plane * 512 + lane * 16);
        if constexpr (scale) load_words<scale / 4>(raw.scale, stage + scale_at + lane * scale);
        if constexpr (high) load_words<high / 4>(raw.high, stage + high_at + lane * high);
        if constexpr (super) load_words<super / 4>(raw.super, stage + super_at + lane * super);
    }
};

// MXFP4's powers of two have a wider range than float16: a row is computed relative to its largest exponent, and its
// results are multiplied by 2^(exponent - 127) in the end. `base` are the largest exponents of the lane's two rows.
struct RowBase {
    int base[2];
};

DEVICE u16 relative_scale(u32 exponent, int base) {  // 2^(exponent - base + 14), as codes below carry 2^-14
    int field = 29 + (int)exponent - base;
    return field > 0 ? (u16)(field << 10) : (u16)0;
}

constexpr u32 HALF2_1024 = 0x64006400u;  // float16 with 1024 in front: its low 10 bits are an integer
constexpr u32 HALF2_SIXTEENTH = 0x2C002C00u;

DEVICE u32 half2_subtract(u32 a, u32 b) { return half2_fma(b, 0xBC00BC00u, a); }  // exact where the result is

// Scales of a chunk, ready to multiply: of each row (0, 1) and group of 32 columns (16 with SUPER_SCALES), in both
// halves.
template <int F>
struct Scales {
    static constexpr Scaling scaling = Layout<F>::scaling;
    static constexpr bool has_min = scaling == SCALE_MIN || scaling == SUPER_MINS;
    static constexpr int groups = scaling == SUPER_SCALES ? 4 : 2;
    u32 scale[2][groups];
    u32 low[2][groups];  // has_min: what is added after scaling

    DEVICE Scales(const Raw<F>& raw, const RowBase& row_base) {
#pragma unroll
        for (int row = 0; row < 2; row++)
#pragma unroll
            for (int group = 0; group < groups; group++) {
                if constexpr (scaling == SCALE)
                    scale[row][group] = __byte_perm(raw.scale[group], 0, row ? 0x3232 : 0x1010);
                if constexpr (scaling == SCALE_MIN) {
                    scale[row][group] = __byte_perm(raw.scale[2 * group + row], 0, 0x1010);
                    low[row][group] = __byte_perm(raw.scale[2 * group + row], 0, 0x3232);
                }
                if constexpr (scaling == SUPER_MINS) {  // 6-bit scale and minimum times those of the super-block
                    u32 pair = __byte_perm(raw.scale[group], 0x64646464u, row ? 0x4342 : 0x4140);
                    pair = half2_multiply(half2_subtract(pair, HALF2_1024), raw.super[row]);
                    scale[row][group] = __byte_perm(pair, 0, 0x1010);
                    low[row][group] = __byte_perm(pair, 0, 0x3232);
                }
                if constexpr (scaling == SUPER_SCALES) {
                    if (row) continue;  // both rows at once; scales are stored with 128 added
                    u32 pair = __byte_perm(raw.scale[group >> 1], 0x64646464u, group & 1 ? 0x4342 : 0x4140);
                    pair = half2_multiply(half2_subtract(pair, 0x64806480u), raw.super[0]);
                    scale[0][group] = __byte_perm(pair, 0, 0x1010);
                    scale[1][group] = __byte_perm(pair, 0, 0x3232);
                }
                if constexpr (scaling == EXPONENT) {
                    u32 exponent = raw.scale[0] >> (16 * group + 8 * row) & 255;
                    scale[row][group] = half2_both(relative_scale(exponent, row_base.base[row]));
                }
            }
    }
};

// (a & b) | c in one instruction: with two constants the compiler would take two.
DEVICE u32 and_or(u32 a, u32 b, u32 c) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

// Where in a half the sign and the magnitude of an E2M1 lie, of pair q: so that `pair_of` has few bits to move.
DEVICE constexpr int e2m1_sign(int q) { return 0xDECF >> 4 * (q & 3) & 15; }
DEVICE constexpr int e2m1_magnitude(int q) { return 9 - 3 * (q & 3); }

// The low bits of a code of pair q -> their place in a half of a word, which four pairs share; and back.
template <int F>
DEVICE u32 place_nibble(u32 code, int q) {
    if constexpr (Layout<F>::codes == E2M1) return code >> 3 << e2m1_sign(q) | (code & 7) << e2m1_magnitude(q);
    return (code & 15) << 4 * (q & 3);
}
template <int F>
DEVICE u32 nibble_at(u32 half, int q) {
    if constexpr (Layout<F>::codes == E2M1) return (half >> e2m1_sign(q) & 1) << 3 | (half >> e2m1_magnitude(q) & 7);
    return half >> 4 * (q & 3) & 15;
}

// What a code of up to 8 bits stands for, before its scale; E2M1: doubled.
template <int F>
DEVICE int number_of(u32 code) {
    if constexpr (Layout<F>::codes == E2M1) {
        const int magnitude = 0xC8643210u >> (code & 7) * 4 & 15;
        return code >> 3 ? -magnitude : magnitude;
    }
    return (int)code - Layout<F>::zero;
}

// Where in each half the fifth bit of pair q lies, and the fifth and sixth bits: those of pair q + 1, which go four
// bits higher, lie four bits higher, so that one shift serves both.
DEVICE constexpr int high_bit(int q) { return q / 2 + 4 * (q & 1); }
DEVICE constexpr int high_bits(int q) { return q / 4 * 8 + (q / 2 & 1) * 2 + 4 * (q & 1); }

// Pair q (0..7) of one row: the columns 16 (q / 2) + 8 (q % 2) + 2t + (0, 1), dequantised.
template <int F>
DEVICE u32 pair_of(const Raw<F>& raw, const Scales<F>& scales, int row, int q) {
    using L = Layout<F>;
    if constexpr (L::codes == FLOAT32) {
        const int at = 16 * row + 2 * q;
        return pack_half2(__uint_as_float(raw.code[at]), __uint_as_float(raw.code[at + 1]));
    }
    if constexpr (L::codes == FLOAT16)  // times 1: a register of its own, as wgmma must not read one that a load writes
        return half2_multiply(raw.code[8 * row + q], 0x3C003C00u);
    if constexpr (L::codes == BFLOAT16) {
        u32 v = raw.code[8 * row + q];
        return pack_half2(__uint_as_float(v << 16), __uint_as_float(v & 0xFFFF0000u));
    }
    const u32 scale = scales.scale[row][L::scaling == SUPER_SCALES ? q >> 1 : q >> 2];
    if constexpr (L::codes == INTEGERS && L::code_bits == 8) {  // stored with 128 added
        u32 biased = __byte_perm(raw.code[4 * row + (q >> 1)], 0x64646464u, q & 1 ? 0x4342 : 0x4140);
        return half2_multiply(half2_subtract(biased, 0x64806480u), scale);
    }
    if constexpr (L::codes == E2M1) {
        u32 word = raw.code[2 * row + (q >> 2)];  // see `e2m1_sign`
        u32 value;
        if ((q & 3) == 0) value = word & 0x8E008E00u;
        if ((q & 3) == 1) value = word << 3 & 0x8E008E00u;
        if ((q & 3) == 2) value = (word << 1 & 0x80008000u) | (word << 6 & 0x0E000E00u);
        if ((q & 3) == 3) value = (word << 2 & 0x80008000u) | (word << 9 & 0x0E000E00u);
        return half2_multiply(value, scale);
    }
    // Integers of 4 to 6 bits: the nibble at bit 0 or 4 of a half, high bits put above it, 1024 in front.
    u32 word = raw.code[2 * row + (q >> 2)];
    if (q & 2) word >>= 8;
    const bool upper = q & 1;  // nibble at bit 4: the integer comes out times 16
    u32 integer = and_or(word, upper ? 0x00F000F0u : 0x000F000Fu, HALF2_1024);
    constexpr int offset = L::zero;
    if constexpr (L::code_bits == 5) {
        u32 bits = __byte_perm(raw.high[0], 0, row ? 0x4342 : 0x4140);
        integer |= (bits << (4 - high_bit(q & 6))) & (0x00010001u << (upper ? 8 : 4));
    }
    if constexpr (L::code_bits == 6) {
        const int at = high_bits(q & 6);
        integer |= (at <= 4 ? raw.high[row] << (4 - at) : raw.high[row] >> (at - 4)) & (0x00030003u << (upper ? 8 : 4));
    }
    u32 value;
    if (upper) {
        constexpr float minus = -(64.0f + offset);  // 1024 / 16 and the format's own offset
        constexpr u32 half_minus = offset == 0 ? 0xD400 : offset == 8 ? 0xD480 : offset == 16 ? 0xD500 : 0xD600;
        static_assert(minus == -64.0f || offset, "the constant above is this number in float16");
        value = half2_fma(integer, HALF2_SIXTEENTH, half_minus * 0x00010001u);
    } else {
        constexpr u32 front = HALF2_1024 + offset * 0x00010001u;
        value = half2_subtract(integer, front);
    }
    if constexpr (Scales<F>::has_min)
        return half2_fma(value, scale, scales.low[row][q >> 2]);
    else
        return half2_multiply(value, scale);
}

// The A fragment of step s (0..3) of the chunk.
template <int F>
DEVICE void fragment_of(const Raw<F>& raw, const Scales<F>& scales, int s, u32 (&a)[4]) {
    a[0] = pair_of<F>(raw, scales, 0, 2 * s);
    a[1] = pair_of<F>(raw, scales, 1, 2 * s);
    a[2] = pair_of<F>(raw, scales, 0, 2 * s + 1);
    a[3] = pair_of<F>(raw, scales, 1, 2 * s + 1);
}
