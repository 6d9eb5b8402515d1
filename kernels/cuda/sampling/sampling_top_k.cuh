// The draw of rows with a small top-k, as most requests have it: one block lists the few values that can be among the
// largest, and needs no histogram.
#pragma once
#include "sampling_descend.cuh"
#include "sampling_noise.cuh"

constexpr u32 DEEPEST_NUMBER = 0x7F7FFFFFu;  // the largest finite depth

DEVICE bool has_small_top_k(const SampleParams& p, const SamplingRow& sampling) {
    return has_top_k(sampling, p.vocab) && 2 * sampling.top_k <= p.num_slices * GROUPS;
}

// Values no deeper than some depth, the largest of a row among them.
struct Candidates {
    const SampleParams& p;
    const Row& values;
    const u64* listed;  // depth << 32 | id
    u32 num_listed;     // more than TOP_K_CAPACITY: they are not all listed, and each is looked for in the row
    u32 deepest;

    // Call `visit(depth, id)` for each, in any order.
    template <typename Visit>
    DEVICE void each(Visit visit) const {
        if (num_listed <= TOP_K_CAPACITY) {
            for (u32 i = threadIdx.x; i < num_listed; i += THREADS) visit((u32)(listed[i] >> 32), (int)(u32)listed[i]);
        } else {
            for (int id = threadIdx.x; id < p.vocab; id += THREADS) {
                const u32 depth = values.depth(values.logits[id]);
                if (depth <= deepest) visit(depth, id);
            }
        }
    }
};

// Lists the values of a row no deeper than `deepest`; returns how many there are. `group_ranks` are the row's, in
// shared memory.
DEVICE u32 list_values(const SampleParams& p, const Row& values, u32 deepest, const u64* group_ranks, u64* listed) {
    __shared__ u32 num_listed;
    if (threadIdx.x == 0) num_listed = 0;
    __syncthreads();
    for (int slice = 0; slice < p.num_slices; slice++) {
        if (values.depth_of_rank(group_ranks[slice * GROUPS + threadIdx.x / 32]) > deepest) continue;
        const Slice loaded(values.logits, slice, p.vocab);
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const float logit[4] = {loaded.quad[i].x, loaded.quad[i].y, loaded.quad[i].z, loaded.quad[i].w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const u32 depth = values.depth(logit[j]);
                if (depth > deepest) continue;  // so is what lies beyond the row's end
                const u32 at = atomicAdd(&num_listed, 1u);
                if (at < TOP_K_CAPACITY) listed[at] = (u64)depth << 32 | (u32)(loaded.id(i) + j);
            }
        }
    }
    __syncthreads();
    return num_listed;
}

// The largest depth that top-k and top-p keep. Where there are no `top_k` candidates, these are all that can be drawn.
DEVICE u32 deepest_kept(const Candidates& candidates, const SamplingRow& sampling, u64* digits, BlockScratch& shared) {
    DepthEnd end = {DEEPEST_NUMBER, candidates.num_listed};
    if (candidates.num_listed >= (u32)sampling.top_k) {
        const auto one = [](u32) -> u64 { return 1; };
        end = descend(candidates, 0, sampling.top_k, one, digits, shared);
    }
    if (!has_top_p(sampling)) return end.depth;
    u64 own = 0;
    candidates.each([&](u32 depth, int) {
        if (depth < end.depth) own += mass_of(depth);
    });
    u64 mass = block_sum(own, shared);
    if (candidates.num_listed >= (u32)sampling.top_k) mass += (sampling.top_k - end.before) * mass_of(end.depth);
    const auto mass_at = [](u32 depth) { return mass_of(depth); };
    const DepthEnd mass_end = descend(candidates, 0, (double)sampling.top_p * (double)mass, mass_at, digits, shared);
    return min(end.depth, mass_end.depth);
}

// Draws a row's token. The whole block calls it.
DEVICE void draw_of_small_top_k(const SampleParams& p, int row, const Row& values, u64 rank, u64* digits,
                                BlockScratch& shared) {
    __shared__ u64 group_ranks[MAX_GROUPS], listed[TOP_K_CAPACITY];
    const SamplingRow& sampling = p.sampling_rows[row];
    const int num_groups = p.num_slices * GROUPS;
    // At least top-k groups have a value down to here, so that what lies deeper is none of the top-k values.
    const u64 least =
        wanted_rank(p.scratch.group_ranks + (i64)row * num_groups, num_groups, sampling.top_k, group_ranks);
    const u32 deepest = min(values.depth_of_rank(least), DEEPEST_NUMBER);
    const u32 num_listed = list_values(p, values, deepest, group_ranks, listed);
    const Candidates candidates = {p, values, listed, num_listed, deepest};
    const u32 deepest_depth =
        min(deepest_kept(candidates, sampling, digits, shared), __float_as_uint(deepest_drawn(sampling.min_p)));
    const u64 key = sampling.key, position = p.output_positions[row];
    Best best;
    best.expect(rank_id(rank), position, key);
    candidates.each([&](u32 depth, int id) {
        if (depth > deepest_depth) return;
        const u32 word = word_of(philox(id / 4, position, key), id);
        best.consider(rough_score(depth, word), depth, word, id);
    });
    best.reduce(shared);
    if (threadIdx.x == 0) give_out(p, row, best.id == NO_ID ? -1 : best.id);
}
