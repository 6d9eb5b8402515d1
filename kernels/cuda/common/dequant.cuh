// Weights in their packed layout -> float16 fragments of the tensor core's A operand: how bits become numbers.
#pragma once
#include "code_places.cuh"
#include "grid.cuh"
#include "scales.cuh"

// What a code of up to 8 bits stands for, before its scale; E2M1: doubled.
template <int F>
DEVICE int number_of(u32 code) {
    if constexpr (Layout<F>::codes == E2M1) {
        const int magnitude = 0xC8643210u >> (code & 7) * 4 & 15;
        return code >> 3 ? -magnitude : magnitude;
    }
    if constexpr (Layout<F>::codes == NON_LINEAR) return IQ4_NUMBERS<>[code];
    return (int)code - Layout<F>::zero;
}

// IQ4_NL, IQ4_XS: the numbers of four codes, the nibbles of the low half of `word`, as bytes with 128 added; `low_bits`
// is `word` without the nibbles' top bits. A byte permute chooses from eight: where the top bit is set it repeats that
// of the byte which it has found, 0 here, so that one of two numbers remains; see `swap_iq4_bits`.
DEVICE constexpr u32 four_iq4_numbers(int first) {
    u32 word = 0;
    for (int i = 0; i < 4; i++) word |= (u32)(IQ4_NUMBERS<>[first + i] + 128) << 8 * i;
    return word;
}
DEVICE u32 iq4_numbers_of(u32 word, u32 low_bits) {
    constexpr u32 numbers[4] = {four_iq4_numbers(0), four_iq4_numbers(4), four_iq4_numbers(8), four_iq4_numbers(12)};
    return select_bytes(numbers[0] ^ numbers[1], numbers[2] ^ numbers[3], word) ^
           select_bytes(numbers[1], numbers[3], low_bits);
}

// The two magnitudes that a point gives to pair q of a row, as bytes.
template <int F>
DEVICE u32 magnitudes_of(const Raw<F>& raw, int row, int q) {
    using G = Grid<F>;
    const int t = threadIdx.x & 3;
    constexpr int row_words = G::index_bytes / 4, upper_bits = G::index_bits - 8;
    constexpr int size_log2 = G::point_bytes == 8 ? 3 : 2;
    // Four lanes share a point of 8 coordinates, two one of 4.
    const int own = G::point_bytes == 8 ? 0 : t >> 1, first = G::point_bytes == 8 ? q : 2 * q;
    const u32 low = raw.code[row * row_words + first / 4] >> 8 * own;
    const int from = 8 * (first & 3);
    u32 offset = (from ? low >> (from - size_log2) : low << size_log2) & 255u << size_log2;
    if constexpr (upper_bits > 0) {
        const u32 upper = raw.code[2 * row_words] >> own;
        const int from = 16 * row + upper_bits * first, to = 8 + size_log2;
        offset |= (from > to ? upper >> (from - to) : upper << (to - from)) & ((1u << upper_bits) - 1) << to;
    }
    return *(const u16*)(G::in_shared() + offset + (2 * t & (G::point_bytes - 1)));
}

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
    const u32 scale = scales.scale[row][Scales<F>::groups == 4 ? q >> 1 : q >> 2];
    if constexpr (L::codes == INTEGERS && L::code_bits == 8) {  // stored with 128 added
        u32 biased = __byte_perm(raw.code[4 * row + (q >> 1)], 0x64646464u, q & 1 ? 0x4342 : 0x4140);
        return half2_multiply(half2_subtract(biased, 0x64806480u), scale);
    }
    if constexpr (L::codes == NON_LINEAR) {
        const u32 word = raw.code[2 * row + (q >> 2)];
        const u32 low_bits = word & 0x77777777u;
        const u32 four = q & 2 ? iq4_numbers_of(word >> 16, low_bits >> 16) : iq4_numbers_of(word, low_bits);
        const u32 biased = __byte_perm(four, 0x64646464u, q & 1 ? 0x4342 : 0x4140);
        return half2_multiply(half2_subtract(biased, 0x64806480u), scale);
    }
    if constexpr (L::codes == GRID) {
        constexpr int unit = Grid<F>::unit, unit_log2 = unit == 8 ? 3 : unit == 4 ? 2 : 0;
        u32 value = __byte_perm(magnitudes_of<F>(raw, row, q), 0x64646464u, 0x4140);
        value = half2_fma(value, half2_power(unit_log2), half2_of(1024 / unit) ^ HALF2_MINUS);
        const u32 signs = __byte_perm(raw.high[0], 0, row ? 0x4342 : 0x4140);
        return half2_multiply(value ^ (signs << (15 - q) & 0x80008000u), scale);
    }
    if constexpr (L::codes == E2M1) {
        u32 word = raw.code[2 * row + (q >> 2)];  // see `e2m1_sign`
        u32 value;
        if ((q & 3) == 0) value = word & 0x8E008E00u;
        if ((q & 3) == 1) value = word << 3 & 0x8E008E00u;
        // A product shifts sign and magnitude at once; what is carried on stays below the bits that are wanted.
        if ((q & 3) == 2) value = (word & 0x40384038u) * (2u + 64u) & 0x8E008E00u;
        if ((q & 3) == 3) value = (word & 0x20072007u) * (4u + 512u) & 0x8E008E00u;
        return half2_multiply(value, scale);
    }
    if constexpr (L::code_bits == 3) {  // see `three_bits_at`
        const u32 word = raw.code[row], bytes = __byte_perm(raw.high[0], 0, row ? 0x4342 : 0x4140);
        const int at = q < 3 ? 3 * q : q < 5 ? 3 * q - 9 : 3 * q - 15;
        u32 integer = and_or(q < 3   ? word
                             : q < 5 ? word >> 9
                                     : bytes,
                             (q == 7 ? 0x00030003u : 0x00070007u) << at, HALF2_1024);
        if (q == 7) integer |= word >> 7 & 0x01000100u;
        const u32 value = at == 0   ? integers_of<0, L::zero>(integer)
                          : at == 3 ? integers_of<3, L::zero>(integer)
                                    : integers_of<6, L::zero>(integer);
        return half2_multiply(value, scale);
    }
    if constexpr (L::code_bits == 2) {
        const u32 word = q & 1 ? __byte_perm(raw.code[row], 0, 0x2301) : raw.code[row];
        return half2_fma(word & 0x00030003u << two_bits_at(q), scale, scales.low[row][q >> 1]);
    }
    // Integers of 4 to 6 bits with 1024 in front, times 2^at.
    int at = 4 * (q & 1);
    u32 integer;
    if constexpr (L::code_bits == 4) {
        const u32 word = raw.code[2 * row + (q >> 2)];
        integer = and_or(q & 2 ? word >> 8 : word, 0x000F000Fu << at, HALF2_1024);
    } else {
        constexpr int bits = L::code_bits;
        const u32 low = raw.code[2 * row], next = raw.code[2 * row + 1];
        const u32 high = bits == 6 ? raw.high[row] : __byte_perm(raw.high[0], 0, row ? 0x4342 : 0x4140);
        if (q < num_whole_codes<bits>()) {
            const CodePlace place = whole_code_at<bits>(q);
            at = place.from;
            const u32 word = place.word == 0 ? low : place.word == 1 ? next : high;
            integer = and_or(word >> place.shift, 0x00010001u * ((1 << bits) - 1) << at, HALF2_1024);
        } else if (bits == 6) {
            at = 4;
            integer = and_or(q == 6 ? low : next, 0x03C003C0u, HALF2_1024);
            integer |= high >> (2 * q - 10) & 0x00300030u;
        } else {
            at = 5;
            integer = and_or(high, 0x00E000E0u, HALF2_1024);
            integer |= low >> 7 & 0x01000100u;
            integer |= next >> 6 & 0x02000200u;
        }
    }
    u32 value;
    if (at == 0) value = integers_of<0, L::zero>(integer);
    if (at == 3) value = integers_of<3, L::zero>(integer);
    if (at == 4) value = integers_of<4, L::zero>(integer);
    if (at == 5) value = integers_of<5, L::zero>(integer);
    if constexpr (Scales<F>::has_min)
        return half2_fma(value, scale, scales.low[row][Scales<F>::groups == 4 ? q >> 1 : q >> 2]);
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
