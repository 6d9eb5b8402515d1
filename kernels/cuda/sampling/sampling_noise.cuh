// The noise that makes a draw random, and the best score with it.
#pragma once
#include "sampling_plan.cuh"

constexpr float WIDEST_NOISE = 20.3f;  // MAX_GUMBEL - MIN_GUMBEL of the reference: what lies deeper cannot win
constexpr float ROUGH_ERROR = 1e-4f;   // more than `rough_gumbel` and a sum in float32 are off by
constexpr int NO_ID = 0x7FFFFFFF;

// Ten rounds of Philox-4x32 (Salmon et al., 2011) of the counter (block, position, 0).
DEVICE uint4 philox(u32 block, u64 position, u64 key) {
    u32 c0 = block, c1 = (u32)position, c2 = (u32)(position >> 32), c3 = 0;
    u32 k0 = (u32)key, k1 = (u32)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 p0 = (u64)c0 * 0xD2511F53u, p1 = (u64)c2 * 0xCD9E8D57u;
        c0 = (u32)(p1 >> 32) ^ c1 ^ k0, c1 = (u32)p1;
        c2 = (u32)(p0 >> 32) ^ c3 ^ k1, c3 = (u32)p0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

// Standard Gumbel noise of a random word, as the reference has it.
DEVICE double gumbel(u32 word) { return -log(-log(((double)(word >> 8) + 0.5) * 0x1p-24)); }

// The same within ROUGH_ERROR; near 1 from the distance to 1, which float32 can hold.
DEVICE float rough_gumbel(u32 word) {
    const u32 number = word >> 8;
    const float exponential = number < 1u << 23 ? -logf(((float)number + 0.5f) * 0x1p-24f)
                                                : -log1pf(((float)number + (0.5f - 0x1p24f)) * 0x1p-24f);
    return -logf(exponential);
}

DEVICE u32 word_of(const uint4& words, int id) {
    return id % 4 == 0 ? words.x : id % 4 == 1 ? words.y : id % 4 == 2 ? words.z : words.w;
}

// Returns whether noise can exceed `score`. Noise is -log(-log(u)) of a uniform u, and -log(u) >= 1 - u, so that
// exceeding takes 1 - u < exp(-score). What is rough here errs towards true, a sum that is no number included.
DEVICE bool may_exceed(float score, u32 word) {
    constexpr float LOG2_E = 1.4426950408889634f, SLACK = 1e-3f;  // more than the depth and exp2f are off by
    return !((float)(~word >> 8) * 0x1p-24f > exp2f((SLACK - score) * LOG2_E));
}

// The lowest value that min-p keeps and noise can lift above the largest, as a depth.
DEVICE float deepest_drawn(float min_p) { return fminf(fabsf((float)log((double)min_p)), WIDEST_NOISE); }

// The best score so far; of equal ones the lowest id.
struct Best {
    double score = NEGATIVE_INFINITY;
    int id = NO_ID;
    float bound = NEGATIVE_INFINITY;  // a score that some thread of the warp has reached

    // The largest logit's score is one that the best will reach: it is always kept, and its depth is 0.
    DEVICE void expect(int largest_id, u64 position, u64 key) {
        bound = rough_gumbel(word_of(philox(largest_id / 4, position, key), largest_id)) - ROUGH_ERROR;
    }
    DEVICE void take(double other_score, int other_id) {
        if (other_score > score || (other_score == score && other_id < id)) score = other_score, id = other_id;
    }
    // `rough` is the score within ROUGH_ERROR. The exact one is worth its price only if it may be the best.
    DEVICE void consider(float rough, u32 depth, u32 word, int candidate) {
        if (rough + ROUGH_ERROR < bound) return;
        bound = fmaxf(bound, rough - ROUGH_ERROR);
        take(gumbel(word) - (double)__uint_as_float(depth), candidate);
    }
    DEVICE void reduce(BlockScratch& shared) {  // over the block, for thread 0
        __shared__ int warp_ids[THREADS / 32];
#pragma unroll
        for (int distance = 16; distance; distance >>= 1) {
            const double other_score = __shfl_xor_sync(ALL_LANES, score, distance);
            take(other_score, __shfl_xor_sync(ALL_LANES, id, distance));
        }
        if (threadIdx.x % 32 == 0) {
            shared.warp[threadIdx.x / 32] = __double_as_longlong(score);
            warp_ids[threadIdx.x / 32] = id;
        }
        __syncthreads();
        for (int warp = 0; warp < THREADS / 32; warp++) take(__longlong_as_double(shared.warp[warp]), warp_ids[warp]);
        __syncthreads();
    }
};

DEVICE float rough_score(u32 depth, u32 word) { return rough_gumbel(word) - __uint_as_float(depth); }
