// Where a sum over values, the most probable first, reaches what is wanted.
#pragma once
#include "sampling_plan.cuh"

struct DepthEnd {
    u32 depth;
    u64 before;  // the sum over lesser depths
};

// The depth with which the sum of `amount(depth)` over all up to it reaches `wanted`; the sum begins with `before`.
// `values.each(visit)` is to call `visit(depth, id)` for each value, in any order; the block shares them. Digit by
// digit of the depths' bits, eight at a time.
template <typename Values, typename Amount>
DEVICE DepthEnd descend(const Values& values, u64 before, double wanted, Amount amount, u64* digits,
                        BlockScratch& shared) {
    u64 prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        digits[threadIdx.x] = 0;
        __syncthreads();
        values.each([&](u32 depth, int) {
            if ((u64)depth >> (shift + 8) == prefix) atomicAdd(&digits[depth >> shift & 255], amount(depth));
        });
        __syncthreads();
        const u64 own[1] = {digits[threadIdx.x]};
        const Place place = find_place(own, before, wanted, shared);
        prefix = prefix << 8 | place.index;
        before = place.before;
    }
    return {(u32)prefix, before};
}
