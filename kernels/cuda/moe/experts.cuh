// Which experts a router has chosen: those with the largest logits; of equals the lower expert first.
#pragma once
#include "../common/common.cuh"

// The expert that comes at place `rank` of `logits` [num_experts]. All lanes of a warp call it; all get the answer.
// Where NaN leaves a place empty it is any expert: the sampler will see it.
DEVICE int expert_of_rank(const float* logits, int num_experts, int rank) {
    const int lane = threadIdx.x % 32;
    auto logit = [&](int expert) { return expert < num_experts ? logits[expert] : NEGATIVE_INFINITY; };
    int found = 0;
    for (int first = 0; first < num_experts; first += 32) {
        const int expert = first + lane;
        const float own = logit(expert);
        int ahead = 0;
        for (int others = 0; others < num_experts; others += 32) {
            const float other = logit(others + lane);
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const float value = __shfl_sync(ALL_LANES, other, i);
                ahead += value > own || (value == own && others + i < expert);
            }
        }
        const u32 there = __ballot_sync(ALL_LANES, expert < num_experts && ahead == rank);
        if (there) found = first + __ffs(there) - 1;
    }
    return found;
}

// Softmax over the `num_used` experts with the largest logits: one lane calls store(rank, expert, routing weight)
// for each of them. All lanes of a warp call it.
template <typename Store>
DEVICE void weigh_experts(const float* logits, int num_experts, int num_used, Store store) {
    float first = 0.0f, total = 0.0f;
    for (int rank = 0; rank < num_used; rank++) {
        const float logit = logits[expert_of_rank(logits, num_experts, rank)];
        if (rank == 0) first = logit;
        total += expf(logit - first);
    }
    for (int rank = 0; rank < num_used; rank++) {
        const int expert = expert_of_rank(logits, num_experts, rank);
        if (threadIdx.x % 32 == 0) store(rank, expert, expf(logits[expert] - first) / total);
    }
}
