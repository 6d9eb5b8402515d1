// Single numbers of packed matrices.
#pragma once
#include "../common/dequant.cuh"

// Where word `word` of a lane's codes is in those of a chunk.
template <int F>
DEVICE int code_word_at(int word, int lane) {
    constexpr int words = Layout<F>::code_words < 4 ? Layout<F>::code_words : 4;  // that lie together
    return word / 4 * 512 + lane * (4 * words) + word % 4 * 4;
}

// Number (q, e) of a lane from the point that it has a coordinate of.
template <int F>
DEVICE float grid_element(const u8* unit, int sub, int lane, int half, int q, int e) {
    using L = Layout<F>;
    using G = Grid<F>;
    const int g = lane >> 2, column = 8 * q + 2 * (lane & 3) + e, i = column / G::point_bytes;
    const int at = half * G::index_bytes + i;
    constexpr int upper_bits = G::index_bits - 8;
    const u8* codes = unit + sub * L::code_bytes;
    u32 index = codes[at / 16 * 128 + g * 16 + at % 16];
    if constexpr (upper_bits > 0) {
        const u32 upper = *(const u16*)(codes + L::rest_at + g * 4 + half * 2);
        index |= (upper >> upper_bits * i & ((1 << upper_bits) - 1)) << 8;
    }
    const u32 signs = *(const u16*)(unit + L::high_at + sub * L::high_bytes + lane * 4 + half * 2);
    const u8* scales = unit + L::scale_at + sub * L::scale_bytes + g * 4 + half * 2;
    const u32 nibble = scales[q >> 2] >> 4 * (q >> 1 & 1) & 15;
    const float d = from_half(((const u16*)(unit + L::super_at))[g * 2 + half]);
    const float number = G::magnitude(index, column % G::point_bytes) * (1.0f / G::unit) * (d * (2 * nibble + 1));
    return signs >> (q + 8 * e) & 1 ? -number : number;
}

// Rounded as ggml's dequantize_row_*: products and differences in float32, one after the other.
template <int F>
DEVICE float packed_element(const u8* matrix, int row, int k, int num_units) {
    using L = Layout<F>;
    const int half = row % 16 / 8, g = row % 8, lane = 4 * g + k % 8 / 2, e = k % 2;
    const int chunk = k / 64, sub = chunk % L::chunks, q = k % 64 / 8;
    const u8* unit = unit_address<F>(matrix, row / 16, chunk, num_units);
    if constexpr (L::has_grid) return grid_element<F>(unit, sub, lane, half, q, e);
    const u8* codes = unit + sub * L::code_bytes;
    auto word = [&](int at) { return *(const u32*)(codes + code_word_at<F>(at, lane)); };
    if constexpr (L::codes == FLOAT32) return __uint_as_float(word(16 * half + 2 * q + e));
    if constexpr (L::codes == FLOAT16) return from_half((u16)(word(8 * half + q) >> (16 * e)));
    if constexpr (L::codes == BFLOAT16) return __uint_as_float(word(8 * half + q) >> (16 * e) << 16);
    const u8* scales = unit + L::scale_at + sub * L::scale_bytes;
    const u8* supers = unit + L::super_at;
    const int group = q >> 2, at = 2 * group + half;
    u32 code;
    const u8* highs = unit + L::high_at + sub * L::high_bytes;
    if constexpr (L::code_bits == 3)
        code = three_bits_of(word(half), *(const u16*)(highs + lane * 4 + half * 2), q, e);
    else if constexpr (L::code_bits == 8)
        code = word(4 * half + (q >> 1)) >> (16 * (q & 1) + 8 * e) & 255;
    else if constexpr (L::code_bits == 5 || L::code_bits == 6) {
        const u32 high =
            L::code_bits == 5 ? *(const u16*)(highs + lane * 4 + half * 2) : *(const u32*)(highs + lane * 8 + half * 4);
        const u32 words[3] = {word(2 * half), word(2 * half + 1), high};
        code = code_of_words<L::code_bits>(words, q, e);
    } else
        code = low_of<F>(word(L::code_words / 2 * half + low_word<F>(q)), q, e);
    const float number = number_of<F>(code);
    if constexpr (L::scaling == SCALE) return number * from_half(((const u16*)scales)[g * 4 + at]);
    if constexpr (L::scaling == SCALE_MIN) {
        const u32 pair = ((const u32*)scales)[g * 4 + at];
        return __fadd_rn(__fmul_rn(number, low_half(pair)), high_half(pair));
    }
    if constexpr (L::scaling == SUPER_MINS) {
        const u32 pair = ((const u16*)scales)[g * 4 + at], d = ((const u32*)supers)[g * 2 + half];
        const float scale = low_half(d) * (float)(pair & 255), least = high_half(d) * (float)(pair >> 8);
        return __fadd_rn(__fmul_rn(number, scale), least);
    }
    if constexpr (L::scaling == SUPER_MINS_16) {
        const u32 d = ((const u32*)supers)[g * 2 + half];
        auto nibble = [&](int first) {
            return (float)(scales[g * 8 + 4 * half + first + group] >> 4 * (q >> 1 & 1) & 15);
        };
        const float scale = low_half(d) * nibble(0), least = high_half(d) * nibble(2);
        return __fadd_rn(__fmul_rn(number, scale), least);
    }
    if constexpr (L::scaling == EXPONENT) {
        const u32 exponent = scales[g * 4 + at];  // of doubled numbers, hence one less
        return number * __uint_as_float(exponent < 2 ? 0x00200000u << exponent : exponent - 1 << 23);
    }
    const float d = from_half(((const u16*)supers)[g * 2 + half]);
    const int scale = scales[L::scaling == SUPER_SCALES ? g * 8 + 2 * (q >> 1) + half : g * 4 + at];
    return number * (d * (float)(scale - 128));
}
