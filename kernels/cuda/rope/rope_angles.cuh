// Cosines and sines of rotary position embedding.
#pragma once
#include "../common/common.cuh"

struct AngleParams {
    const float* inverse_frequencies;  // [sets, num_pairs]
    i32 num_pairs;
    i32 long_after;  // sequences of more tokens take the second set of frequencies; -1: there is one set
    float attention_factor;
    float query_growth_rate;
    i32 query_growth_interval;  // 0: queries do not grow
};

// Cosine and sine of one of the pairs of a token at `position` of a sequence of `length` tokens.
DEVICE float2 angle_of(const AngleParams& p, i32 position, i32 length, i32 pair) {
    const bool is_long = p.long_after >= 0 && length > p.long_after;
    const float frequency = p.inverse_frequencies[(is_long ? p.num_pairs : 0) + pair];
    // Rounded, as reference implementations do.
    const float angle = __fmul_rn((float)position, frequency);
    float sine, cosine;
    sincosf(angle, &sine, &cosine);
    return {cosine * p.attention_factor, sine * p.attention_factor};
}

// What the rotated queries of a token there are multiplied by.
DEVICE float query_factor_of(const AngleParams& p, i32 position) {
    if (!p.query_growth_interval) return 1.0f;
    return fmaf(p.query_growth_rate, log1pf((float)(max(position, 0) / p.query_growth_interval)), 1.0f);
}
