// Which experts a router has chosen: those with the largest logits; of equals the lower expert first.
#pragma once
#include "../common/common.cuh"

// A number whose order is that of the logits, with NaN in some place of its own; never 0.
DEVICE u32 order_of(float logit) {
    const u32 bits = __float_as_uint(__fadd_rn(logit, 0.0f));  // -0 is 0
    return max(bits & 0x80000000u ? ~bits : bits | 0x80000000u, 1u);
}

// The orders of a lane's experts: those at lane, lane + 32 ... of `logits` [num_experts]; 0: there is none.
template <int COUNT>
DEVICE void load_orders(u32 (&orders)[COUNT], const float* logits, int num_experts) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const int own = threadIdx.x % 32 + 32 * i;
        orders[i] = own < num_experts ? order_of(logits[own]) : 0;
    }
}

// Goes through the experts of `logits` [num_experts] in the order of their rank. A warp's lanes share them: all of them
// make the same calls, and all get the answers.
class Ranking {
    static constexpr int HELD = 8;  // experts of a lane that it has in registers: with 256 all of them

    const float* logits;
    int num_experts;
    u32 orders[HELD];  // 0: there is none, or it was found
    u32 order = 0;     // of the expert found last
    int expert = -1;   // that one

   public:
    DEVICE Ranking(const float* logits, int num_experts) : logits(logits), num_experts(num_experts) {
        load_orders(orders, logits, num_experts);
    }

    // The next expert: the one with the largest logit of those that come after the last one.
    DEVICE int next() {
        const int lane = threadIdx.x % 32;
        u32 best = 0;
        int own = 0;
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (orders[i] > best) best = orders[i], own = lane + 32 * i;
        for (int other = lane + 32 * HELD; other < num_experts; other += 32) {
            const u32 its = order_of(logits[other]);
            const bool comes_after = expert < 0 || its < order || (its == order && other > expert);
            if (comes_after && its > best) best = its, own = other;
        }
        order = __reduce_max_sync(ALL_LANES, best);
        expert = __reduce_min_sync(ALL_LANES, best == order ? own : num_experts);
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (expert == lane + 32 * i) orders[i] = 0;
        return expert;
    }
};

// The expert at place `rank` of at most 32 COUNT experts; -1 if that has_equals on which of two equals comes first.
template <int COUNT>
DEVICE int expert_without_equals(const float* logits, int num_experts, int rank) {
    u32 orders[COUNT], bound = 0xFFFFFFFFu;
    load_orders(orders, logits, num_experts);
    for (int before = -1; before < rank; before++) {
        u32 best = 0;
#pragma unroll
        for (int i = 0; i < COUNT; i++) best = max(best, orders[i] < bound ? orders[i] : 0);
        bound = __reduce_max_sync(ALL_LANES, best);
    }
    int expert = -1, count = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        count += __popc(__ballot_sync(ALL_LANES, orders[i] >= bound));
        const u32 found = __ballot_sync(ALL_LANES, orders[i] == bound);
        if (found) expert = 32 * i + __ffs(found) - 1;
    }
    return count == rank + 1 ? expert : -1;
}

// The expert that comes at place `rank` of `logits` [num_experts]. All lanes of a warp call it; all get the answer.
DEVICE int expert_of_rank(const float* logits, int num_experts, int rank) {
    if (num_experts <= 256) {
        const int expert = num_experts <= 32    ? expert_without_equals<1>(logits, num_experts, rank)
                           : num_experts <= 128 ? expert_without_equals<4>(logits, num_experts, rank)
                                                : expert_without_equals<8>(logits, num_experts, rank);
        if (expert >= 0) return expert;
    }
    Ranking ranking(logits, num_experts);
    for (int before = 0; before < rank; before++) ranking.next();
    return ranking.next();
}

// The expert at place `lane` of the first `num_used`, of at most 32 COUNT; `has_equals`: that hangs on which of two
// equals comes first.
template <int COUNT>
DEVICE int expert_of_lane_without_equals(const float* logits, int num_experts, int num_used, bool& has_equals) {
    u32 orders[COUNT], bound = 0xFFFFFFFFu;
    load_orders(orders, logits, num_experts);
    int expert = 0, count = 0;
    for (int rank = 0; rank < num_used; rank++) {
        u32 best = 0;
#pragma unroll
        for (int i = 0; i < COUNT; i++) best = max(best, orders[i] < bound ? orders[i] : 0);
        bound = __reduce_max_sync(ALL_LANES, best);
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const u32 found = __ballot_sync(ALL_LANES, orders[i] == bound);
            count += __popc(found);
            if (found && threadIdx.x % 32 == rank) expert = 32 * i + __ffs(found) - 1;
        }
    }
    has_equals = count != num_used;
    return expert;
}

// The expert that comes at place `lane` of `logits` [num_experts]; from place `num_used` on some expert. All lanes of a
// warp call it.
DEVICE int expert_of_lane(const float* logits, int num_experts, int num_used) {
    bool has_equals = true;
    int expert = 0;
    if (num_experts <= 32)
        expert = expert_of_lane_without_equals<1>(logits, num_experts, num_used, has_equals);
    else if (num_experts <= 128)
        expert = expert_of_lane_without_equals<4>(logits, num_experts, num_used, has_equals);
    else if (num_experts <= 256)
        expert = expert_of_lane_without_equals<8>(logits, num_experts, num_used, has_equals);
    if (!has_equals) return expert;
    Ranking ranking(logits, num_experts);
    expert = 0;
    for (int rank = 0; rank < num_used; rank++) {
        const int found = ranking.next();
        if (threadIdx.x % 32 == rank) expert = found;
    }
    return expert;
}

// What an expert that all tokens go through is multiplied by.
DEVICE float share_of(float logit) { return 1.0f / (1.0f + __expf(-logit)); }

// The weight of the expert at place `lane` of a token: the softmax over the `num_used` chosen ones, of whose `logit`
// each lane has that of its place. All lanes of a warp call it.
DEVICE float routing_weight(float logit, int num_used) {
    const float own = expf(logit - __shfl_sync(ALL_LANES, logit, 0));
    float total = 0.0f;
    for (int rank = 0; rank < num_used; rank++) total += __shfl_sync(ALL_LANES, own, rank);
    return own / total;
}
