// Scales and minima of packed weights -> float16 that dequantised codes are multiplied by and added to.
#pragma once
#include "layout.cuh"

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
