// Where in packed words the bits of codes lie: of a lane's eight pairs of a row, which repacking puts there.
#pragma once
#include "layout.cuh"

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
