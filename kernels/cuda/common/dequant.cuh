// Weights in their packed layout -> float16 fragments of the tensor core's A operand: how bits become numbers.
#pragma once
#include "layout.cuh"
#include "grid.cuh"

// MXFP4's powers of two have a wider range than float16: a row is computed relative to its largest exponent, and its
// results are multiplied by 2^(exponent - 127) in the end. `base` are the largest exponents of the lane's two rows. So
// it is with Q2_K: `RowFactors`.
struct RowBase {
    int base[2];
};

// The codes of Q2_K are taken for subnormal float16 as they lie in a word: a code q at bit `at` of a half is
// q * 2^(at - 24), and needs no conversion. Scales must be larger by as much, and fit: a row is computed relative to
// its largest super-scale, too. If that is below 2^(n + 1), the row's base is n + RELATIVE_BASE.
constexpr int RELATIVE_BASE = 127 + 11, LEAST_EXPONENT = -19;

// 2^n, n from -24 to 15. (Less is asked for where a super-scale is 2^14, and its numbers are more than float16 holds.)
DEVICE u16 half_power(int n) { return (u16)(n < -14 ? 1 << max(24 + n, 0) : 15 + n << 10); }

// What the scales of two rows are multiplied by because of their largest exponents. It takes many instructions to make.
template <Scaling S>
struct RowFactors {
    DEVICE explicit RowFactors(const RowBase&) {}
    DEVICE void compute_now() {}
};

template <>
struct RowFactors<SUPER_MINS_16> {
    u32 first[2], second[2];  // their product has more digits than one float16

    DEVICE explicit RowFactors(const RowBase& rows) {
#pragma unroll
        for (int row = 0; row < 2; row++) {
            const int n = max(rows.base[row] - RELATIVE_BASE, LEAST_EXPONENT), one = min(11 - n, 15);
            first[row] = half_power(one) | (u32)half_power(-11 - n) << 16;
            second[row] = half_power(11 - n - one) | 0x3C000000u;
        }
    }
    DEVICE void compute_now() {
#pragma unroll
        for (int row = 0; row < 2; row++) ::compute_now(first[row]), ::compute_now(second[row]);
    }
    // A super-scale times 2^(11 - n), so that 15 of it are below 2^16; and the minimum's times 2^(-11 - n).
    DEVICE u32 relative(u32 super, int row) const {
        return half2_multiply(half2_multiply(super, first[row]), second[row]);
    }
};

template <>
struct RowFactors<EXPONENT> {
    u32 offsets;

    // Codes below carry 2^-14.
    DEVICE explicit RowFactors(const RowBase& rows) : offsets((29 - rows.base[0] & 0xFFFF) | 29 - rows.base[1] << 16) {}
    DEVICE void compute_now() { ::compute_now(offsets); }
    // 2^(exponent - base + 14) of both; 0 where that is less than float16 holds.
    DEVICE u32 relative(u32 exponents) const { return int16_max(int16_add(exponents, offsets), 0) << 10; }
};

constexpr u32 HALF2_1024 = 0x64006400u;  // float16 with 1024 in front: its low 10 bits are an integer

DEVICE u32 half2_subtract(u32 a, u32 b) { return half2_fma(b, 0xBC00BC00u, a); }  // exact where the result is

// Twice the float16 of an integer below 2048, and of 2^-n.
DEVICE constexpr u32 half2_of(u32 integer) {
    u32 exponent = 0;
    while (integer >> (exponent + 1)) exponent++;
    return 0x00010001u * ((exponent + 15) << 10 | (integer << (10 - exponent) & 0x3FF));
}
DEVICE constexpr u32 half2_power(int n) { return 0x00010001u * (15 - n << 10); }
DEVICE constexpr u32 half_exponent(int n) { return 15 + n << 10; }  // 2^n
constexpr u32 HALF2_MINUS = 0x80008000u;

// (1024 + integer * 2^AT) of both halves -> the integers less `OFFSET`, exactly.
template <int AT, int OFFSET = 0>
DEVICE u32 integers_of(u32 value) {
    if constexpr (AT == 0) return half2_subtract(value, HALF2_1024 + 0x00010001u * OFFSET);
    constexpr u32 minus = half2_of((1024 >> AT) + OFFSET) ^ HALF2_MINUS;
    return half2_fma(value, half2_power(AT), minus);
}

// (a & b) | c in one instruction: with two constants the compiler would take two.
DEVICE u32 and_or(u32 a, u32 b, u32 c) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

// Nibble `j` (0..3) of both halves of a word, with 1024 in front; it comes out times 2^`nibble_at(j)`.
DEVICE constexpr int nibble_at(int j) { return 4 * (j & 1); }
DEVICE u32 nibble_of(u32 word, int j) {
    return and_or(j & 2 ? word >> 8 : word, 0x000F000Fu << nibble_at(j), HALF2_1024);
}

// Scales of a chunk, ready to multiply: of each row (0, 1) and group of 32 or 16 columns, in both halves.
template <int F>
struct Scales {
    static constexpr Scaling scaling = Layout<F>::scaling;
    static constexpr bool has_min = scaling == SCALE_MIN || scaling == SUPER_MINS || scaling == SUPER_MINS_16;
    static constexpr int groups = scaling == SUPER_SCALES || scaling == SUPER_MINS_16 || scaling == ODD_SCALES ? 4 : 2;
    static constexpr int num_words = has_min ? 2 * groups : groups;
    u32 scale[2][groups];
    u32 low[2][groups];  // has_min: what is added after scaling

    // Of a group the scales of both rows; has_min: of a row and a group the scale and what is added.
    DEVICE static void find(const Raw<F>& raw, const RowFactors<scaling>& rows, u32 (&word)[num_words]) {
#pragma unroll
        for (int i = 0; i < num_words; i++) {
            const int group = i % groups, row = i / groups;
            u32 pair = 0;
            if constexpr (scaling == SCALE) pair = raw.scale[group];
            if constexpr (scaling == SCALE_MIN) pair = raw.scale[2 * group + row];
            if constexpr (scaling == SUPER_MINS) {  // 6-bit scale and minimum times those of the super-block
                pair = half2_subtract(__byte_perm(raw.scale[group], 0x64646464u, row ? 0x4342 : 0x4140), HALF2_1024);
                pair = half2_multiply(pair, raw.super[row]);
            }
            if constexpr (scaling == SUPER_MINS_16) {  // the same of 4 bits
                // The scale is less by what the codes are more: see `two_bits_at`. Zeros are these powers of two.
                const int at = nibble_at(group);
                const u32 zeros = half_exponent(10 - at - 2 * group) | half_exponent(10 - at) << 16;
                pair = and_or(group & 2 ? raw.scale[row] >> 8 : raw.scale[row], 0x000F000Fu << at, zeros);
                pair = half2_add(pair, zeros ^ HALF2_MINUS);
                pair = half2_multiply(pair, rows.relative(raw.super[row], row));
            }
            if constexpr (scaling == ODD_SCALES) {  // twice the nibble, and one
                pair = nibble_of(raw.scale[0], group);
                pair = group & 1 ? half2_fma(pair, half2_power(3), half2_of(127) ^ HALF2_MINUS)
                                 : half2_fma(pair, half2_of(2), half2_of(2047) ^ HALF2_MINUS);
                pair = half2_multiply(pair, raw.super[0]);
            }
            if constexpr (scaling == SUPER_SCALES || scaling == SUPER_SCALES_32) {  // stored with 128 added
                const u32 bytes = raw.scale[scaling == SUPER_SCALES ? group >> 1 : 0];
                pair = half2_subtract(__byte_perm(bytes, 0x64646464u, group & 1 ? 0x4342 : 0x4140), 0x64806480u);
                pair = half2_multiply(pair, raw.super[0]);
            }
            if constexpr (scaling == EXPONENT) {
                pair = rows.relative(__byte_perm(raw.scale[0], 0, group ? 0x4342 : 0x4140));
            }
            word[i] = pair;
        }
    }
    DEVICE explicit Scales(const u32 (&word)[num_words]) {
#pragma unroll
        for (int row = 0; row < 2; row++)
#pragma unroll
            for (int group = 0; group < groups; group++) {
                if constexpr (has_min) {
                    scale[row][group] = half2_low(word[row * groups + group]);
                    low[row][group] = half2_high(word[row * groups + group]);
                } else {
                    scale[row][group] = row ? half2_high(word[group]) : half2_low(word[group]);
                }
            }
    }
    DEVICE Scales(const Raw<F>& raw, const RowFactors<scaling>& rows) : Scales(Found(raw, rows).word) {}
    DEVICE Scales(const Raw<F>& raw, const RowBase& rows) : Scales(raw, RowFactors<scaling>(rows)) {}

   private:
    struct Found {
        u32 word[num_words];
        DEVICE Found(const Raw<F>& raw, const RowFactors<scaling>& rows) { find(raw, rows, word); }
    };
};

// Where in a half the sign and the magnitude of an E2M1 lie, of pair q: so that `pair_of` has few bits to move.
DEVICE constexpr int e2m1_sign(int q) { return 0xDECF >> 4 * (q & 3) & 15; }
DEVICE constexpr int e2m1_magnitude(int q) { return 9 - 3 * (q & 3); }

// Where in a half codes of 2 bits are taken from: the two pairs of 16 columns are at the same place.
DEVICE constexpr int two_bits_at(int q) { return 2 + (q & 6); }

// Where in a word the low bits of code e of pair q lie: the word has those of 4 pairs, or of 8 if they are 2 bits. The
// nibbles of NON_LINEAR select bytes: two pairs are in each half. Codes of 2 bits are at bits 2 to 9, or are so once
// the bytes of the halves have changed places.
template <int F>
DEVICE constexpr int low_place(int q, int e) {
    using L = Layout<F>;
    if (L::codes == NON_LINEAR) return 16 * (q >> 1 & 1) + 8 * (q & 1) + 4 * e;
    if (L::low_bits == 2) return 16 * e + (two_bits_at(q) + 8 * (q & 1)) % 16;
    return 16 * e + 4 * (q & 3);
}
template <int F>
DEVICE constexpr int low_word(int q) {  // of a row
    return Layout<F>::low_bits == 2 ? 0 : q >> 2;
}

// NON_LINEAR: bits 2 and 3 of a code change places in a word, so that the numbers of two codes which differ in the top
// bit alone have the same sign.
DEVICE u32 swap_iq4_bits(u32 code) { return (code & 3) | (code >> 1 & 4) | (code << 1 & 8); }

// The low bits of a code -> their place in a word; and back.
template <int F>
DEVICE u32 place_low(u32 code, int q, int e) {
    if constexpr (Layout<F>::codes == E2M1)
        return (code >> 3 << e2m1_sign(q) | (code & 7) << e2m1_magnitude(q)) << 16 * e;
    if constexpr (Layout<F>::codes == NON_LINEAR) code = swap_iq4_bits(code);
    return (code & Layout<F>::low_mask) << low_place<F>(q, e);
}
template <int F>
DEVICE u32 low_of(u32 word, int q, int e) {
    if constexpr (Layout<F>::codes == E2M1) {
        const u32 half = word >> 16 * e;
        return (half >> e2m1_sign(q) & 1) << 3 | (half >> e2m1_magnitude(q) & 7);
    }
    const u32 code = word >> low_place<F>(q, e) & Layout<F>::low_mask;
    return Layout<F>::codes == NON_LINEAR ? swap_iq4_bits(code) : code;
}

// Codes of 3 bits: those of five pairs lie whole in the halves of the row's word, the others in the bytes of its high
// bits, but for the last one's top bit: that is bit 15 of the half.
DEVICE constexpr int three_bits_at(int q) { return 3 * (q % 5); }
DEVICE void place_three_bits(u32& word, u32& bytes, u32 code, int q, int e) {
    if (q < 5)
        word |= code << (three_bits_at(q) + 16 * e);
    else
        bytes |= (code & (q < 7 ? 7 : 3)) << (three_bits_at(q) + 8 * e);
    if (q == 7) word |= code >> 2 << (15 + 16 * e);
}
DEVICE u32 three_bits_of(u32 word, u32 bytes, int q, int e) {
    if (q < 5) return word >> (three_bits_at(q) + 16 * e) & 7;
    if (q < 7) return bytes >> (three_bits_at(q) + 8 * e) & 7;
    return (bytes >> (three_bits_at(q) + 8 * e) & 3) | (word >> (15 + 16 * e) & 1) << 2;
}

// Codes of 5 and 6 bits: those of six pairs lie whole in the halves of the row's words, of 6 bits the high bits being
// the third one. The others are put together of what these leave. `from` is where the code is taken from once the half
// is moved right by `shift`.
struct CodePlace {
    int word, shift, from;  // `word` 2: the high bits
};
template <int BITS>
DEVICE constexpr CodePlace whole_code_at(int q) {
    if (BITS == 6) return {q / 2, 6 * (q & 1), 4 * (q & 1)};
    if (q == 6) return {2, 0, 0};
    return {q / 3, q % 3 < 2 ? 0 : q == 2 ? 7 : 6, q % 3 < 2 ? 5 * (q % 3) : q == 2 ? 3 : 4};
}
template <int BITS>
DEVICE constexpr int num_whole_codes() {
    return BITS == 6 ? 6 : 7;
}

// `words`: the two of the row; `high`: of 5 bits a byte of each half.
template <int BITS>
DEVICE void place_code(u32 (&words)[3], u32 code, int q, int e) {
    const int high_step = BITS == 6 ? 16 : 8;
    if (q < num_whole_codes<BITS>()) {
        const CodePlace place = whole_code_at<BITS>(q);
        words[place.word] |= code << (place.from + place.shift + (place.word == 2 ? high_step : 16) * e);
    } else if (BITS == 6) {
        words[q - 6] |= code >> 2 << (6 + 16 * e);
        words[2] |= (code & 3) << (2 * q - 6 + high_step * e);
    } else {
        words[2] |= (code & 7) << (5 + high_step * e);
        words[0] |= (code >> 3 & 1) << (15 + 16 * e), words[1] |= code >> 4 << (15 + 16 * e);
    }
}
template <int BITS>
DEVICE u32 code_of_words(const u32 (&words)[3], int q, int e) {
    const int high_step = BITS == 6 ? 16 : 8;
    if (q < num_whole_codes<BITS>()) {
        const CodePlace place = whole_code_at<BITS>(q);
        return words[place.word] >> (place.from + place.shift + (place.word == 2 ? high_step : 16) * e) &
               ((1 << BITS) - 1);
    }
    const u32 high = words[2] >> high_step * e;
    if (BITS == 6) return (words[q - 6] >> (6 + 16 * e) & 15) << 2 | (high >> (2 * q - 6) & 3);
    return (high >> 5 & 7) | (words[0] >> (15 + 16 * e) & 1) << 3 | (words[1] >> (15 + 16 * e) & 1) << 4;
}

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
