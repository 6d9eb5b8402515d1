// Where the blocks of the IQ2 and IQ3 formats have what, of 256 numbers each (ggml-common.h: block_iq*).
#pragma once
#include "../common/dequant.cuh"

DEVICE u32 half_at(const u8* p) { return p[0] | (u32)p[1] << 8; }
DEVICE u32 word_at(const u8* p) { return half_at(p) | half_at(p + 2) << 16; }

// The index of the block's point i.
template <int F>
DEVICE u32 point_index(const u8* block, int i) {
    using L = Layout<F>;
    const u8* codes = block + L::block_codes_at;
    if constexpr (F == IQ2_XXS) return codes[i / 4 * 8 + i % 4];
    if constexpr (F == IQ2_XS) return half_at(codes + 2 * i) & 511;
    if constexpr (L::code_bits == 8) return codes[i];
    if constexpr (L::code_bits == 9) return codes[i] | (block[L::block_high_at + i / 8] >> i % 8 & 1) << 8;
    return codes[i] | (block[L::block_high_at + i / 4] >> 2 * (i % 4) & 3) << 8;
}

// The 32 bits that hold, of the numbers from 32 i on, four times seven signs and above them a scale.
template <int F>
DEVICE u32 signs_and_scale(const u8* block, int i) {
    return F == IQ2_XXS ? word_at(block + Layout<F>::block_codes_at + i * 8 + 4)
                        : word_at(block + Layout<F>::block_signs_at + i * 4);
}

// Signs of the numbers from 8 i on, a bit each. Where seven are stored, an even number of the eight is negative.
template <int F>
DEVICE u32 signs_of(const u8* block, int i) {
    if constexpr (F == IQ2_S || F == IQ3_S) return block[Layout<F>::block_signs_at + i];
    const u32 seven = F == IQ2_XS ? half_at(block + Layout<F>::block_codes_at + 2 * i) >> 9
                                  : signs_and_scale<F>(block, i / 4) >> 7 * (i % 4) & 127;
    return seven | (__popc(seven) & 1) << 7;
}

// The scale of the numbers from 16 i on: 4 bits.
template <int F>
DEVICE u32 nibble_scale(const u8* block, int i) {
    if constexpr (F == IQ2_XXS || F == IQ3_XXS) return signs_and_scale<F>(block, i / 2) >> 28;
    const int group = F == IQ3_S ? i / 2 : i;
    return block[Layout<F>::block_scales_at + group / 2] >> 4 * (group % 2) & 15;
}
