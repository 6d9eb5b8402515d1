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

// ---- codes. They lie there as code + 128, and of 16 those of elements i and i + 8 are neighbours: a word of a key,
// and a word of two values that lie below each other, then hold just what a lane needs for a B operand of the tensor
// core.

// Where the code of element `2 * word` is. That of the next element is 2 bytes further.
DEVICE i32 code_place(i32 word) { return word / 8 * 16 + word % 4 * 4 + word / 4 % 2; }

DEVICE float reciprocal(float x) {  // to the last bit but one
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE u32 larger_magnitude(u32 largest, u32 pair) {  // as bits, in the order of which NaN is the largest
    return max(largest, max(pair & 0x7FFFu, pair >> 16 & 0x7FFFu));
}

// The scale of a head whose largest magnitude has the bits `largest`. A quotient of float16 by 127 is never so near to
// the middle between two of float16 that it matters how it was rounded to float32.
DEVICE u16 scale_of(u32 largest) { return to_half(__fmul_rn(from_half((u16)largest), 1.0f / 127.0f)); }

// 128 + x / scale, to the nearest whole number, half to even, in the low byte. The quotient of two float16 is the
// middle between two such numbers or at least 2^-12 away from it: a product with 1 / scale, rounded to multiples of
// 2^-13, tells.
DEVICE u32 code_of(float x, float inverse_scale) {
    const float steps = fmaxf(-127.0f, fminf(127.0f, __fmul_rn(x, inverse_scale)));
    return __float_as_uint(__fadd_rn(__fadd_rn(__fadd_rn(steps, 1536.0f), -1536.0f), 12582912.0f + 128.0f));
}
// Those of two pairs of elements.
DEVICE u32 codes_of(uint2 words, float scale) {
    if (!(scale > 0.0f)) return 0x80808080u;  // too small for a scale, or NaN
    const float inverse = reciprocal(scale);
    const u32 low = select_bytes(code_of(low_half(words.x), inverse), code_of(high_half(words.x), inverse), 0x0040);
    const u32 high = select_bytes(code_of(low_half(words.y), inverse), code_of(high_half(words.y), inverse), 0x0040);
    return select_bytes(low, high, 0x5410);
}
// Stores what `codes_of` made of the words `first` and `second` of a head.
DEVICE void store_codes(u8* head, i32 first, i32 second, u32 codes) {
    u8 *const a = head + code_place(first), *const b = head + code_place(second);
    a[0] = (u8)codes, a[2] = (u8)(codes >> 8), b[0] = (u8)(codes >> 16), b[2] = (u8)(codes >> 24);
}

// They enter the tensor core as float16 with the bits code + 128, which is (code + 128) * CODE_FACTOR: what is too
// much is subtracted by what sums begin with, CODE_BIAS times the sum of the other factors.
constexpr float CODE_FACTOR = 1.0f / (1 << 24), CODE_BIAS = -128.0f * CODE_FACTOR;

DEVICE u32 even_codes(u32 word) { return word & 0x00FF00FFu; }
DEVICE u32 odd_codes(u32 word) { return select_bytes(word, 0, 0x4341); }
