// What the KV cache keeps of a head of a token: numbers of float16, or with KV_Q8 codes and a scale
// (kernels/cache_format.py).
#pragma once
#include "../common/common.cuh"

#ifdef KV_Q8
constexpr bool IS_Q8 = true;
#else
constexpr bool IS_Q8 = false;
#endif
constexpr int ELEMENT_BYTES = IS_Q8 ? 1 : 2;

// Keys, or values, of one layer. Its rows are heads of tokens; of a block those of one head lie together.
struct HeadCache {
    u8* heads;    // [num_blocks, num_kv_heads, block_tokens, head_dim] float16, or codes
    u16* scales;  // [num_blocks, num_kv_heads, block_tokens] of codes
};

struct LayerCacheParams {
    HeadCache keys, values;
};

// ---- codes. Of 16 codes those of elements i and i + 8 are neighbours: a word of a key, and a word of two values that
// lie below each other, then hold just what a lane needs for a B operand of the tensor core.

// Where the code of element `2 * word` is. That of the next element is 2 bytes further.
DEVICE i32 code_place(i32 word) { return word / 8 * 16 + word % 4 * 4 + word / 4 % 2; }

DEVICE u32 larger_magnitude(u32 largest, u32 pair) {  // as bits, in the order of which NaN is the largest
    return max(largest, max(pair & 0x7FFFu, pair >> 16 & 0x7FFFu));
}

// The scale of a head whose largest magnitude has the bits `largest`.
DEVICE u16 scale_of(u32 largest) { return to_half(__fdiv_rn(from_half((u16)largest), 127.0f)); }

DEVICE u32 code_of(float x, float scale) {
    if (!(scale > 0.0f)) return 0;  // too small for a scale, or NaN
    return (u32)max(-127, min(127, __float2int_rn(__fdiv_rn(x, scale)))) & 0xFFu;
}
// Those of two pairs of elements.
DEVICE u32 codes_of(uint2 words, float scale) {
    return code_of(low_half(words.x), scale) | code_of(high_half(words.x), scale) << 8 |
           code_of(low_half(words.y), scale) << 16 | code_of(high_half(words.y), scale) << 24;
}
// Stores what `codes_of` made of the words `first` and `second` of a head.
DEVICE void store_codes(u8* head, i32 first, i32 second, u32 codes) {
    u8 *const a = head + code_place(first), *const b = head + code_place(second);
    a[0] = (u8)codes, a[2] = (u8)(codes >> 8), b[0] = (u8)(codes >> 16), b[2] = (u8)(codes >> 24);
}

// Codes enter the tensor core as float16 with the bits code + 128, which is (code + 128) * CODE_FACTOR: what is too
// much is subtracted by what sums begin with, CODE_BIAS times the sum of the other factors.
constexpr float CODE_FACTOR = 1.0f / (1 << 24), CODE_BIAS = -128.0f * CODE_FACTOR;

DEVICE u32 even_codes(u32 word) { return (word & 0x00FF00FFu) ^ 0x00800080u; }
DEVICE u32 odd_codes(u32 word) { return (word >> 8 & 0x00FF00FFu) ^ 0x00800080u; }
