// Logits as integers of the same order, each with its id: their ranks.
#pragma once
#include "../common/common.cuh"

constexpr float POSITIVE_INFINITY = -NEGATIVE_INFINITY;
constexpr u32 NOT_FINITE = 0xFFFFFFFEu;  // ordered bits of no number but NaN

DEVICE u32 ordered_bits(float value) {
    u32 bits = __float_as_uint(__fadd_rn(value, 0.0f));  // -0 becomes 0, which it equals
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEVICE float from_ordered(u32 bits) { return __uint_as_float(bits >> 31 ? bits & 0x7FFFFFFFu : ~bits); }

// The larger of two ranks is the larger value, and of equal values the lower id.
DEVICE u64 rank_of(u32 ordered, u32 id) { return (u64)ordered << 32 | (u32)~id; }
DEVICE u32 rank_bits(u64 rank) { return (u32)(rank >> 32); }
DEVICE u32 rank_id(u64 rank) { return ~(u32)rank; }

// That of a logit: of one that is NaN or +inf it is larger than any other.
DEVICE u64 rank_of_logit(float logit, u32 id) {
    return logit < POSITIVE_INFINITY ? rank_of(ordered_bits(logit), id) : rank_of(NOT_FINITE, 0);
}

DEVICE u64 larger(u64 rank, u64 other) { return other > rank ? other : rank; }

DEVICE u64 warp_largest(u64 value) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1)
        value = larger(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// The token of temperature 0: the lowest id of the largest logit, -1 where that is not a finite number.
DEVICE int greedy_id(u64 rank) {
    const u32 bits = rank_bits(rank);
    return bits == NOT_FINITE || from_ordered(bits) == NEGATIVE_INFINITY ? -1 : (int)rank_id(rank);
}
