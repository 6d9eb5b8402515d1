// From logits to token ids, second part: top-k, top-p, min-p and the draw. Greedy rows leave at once.
//
// `sampling_rank` makes a histogram of how far values lie below the largest. It decides all bins but the few in which
// top-k and top-p end. `sampling_draw` scores what is kept for certain and lists the values of the other bins; the
// last block of a row finds the exact ends among these, and scores what remains.
#include "sampling_descend.cuh"
#include "sampling_top_k.cuh"

// ---- the histogram

DEVICE void make_plan(const SampleParams& p, int row, BlockScratch& shared) {
    Plan plan;
    u64 counts[THREAD_BINS], masses[THREAD_BINS];
    load_bins(p.scratch.counts + (i64)row * BINS, counts);
    load_bins(p.scratch.masses + (i64)row * BINS, masses);
    const SamplingRow& sampling = p.sampling_rows[row];
    if (has_top_k(sampling, p.vocab)) {
        const Place place = find_place(counts, 0, sampling.top_k, shared);
        if (place.index < BINS - 1) {  // else it keeps all that can be drawn
            plan.k = sampling.top_k;
            plan.k_bin = place.index;
            plan.count_before = place.before;
            plan.kept_bins = plan.last_bin = place.index;
        }
    }
    if (has_top_p(sampling)) {
        u64 before = 0, upto = 0;  // the mass of top-k lies between these
#pragma unroll
        for (int i = 0; i < THREAD_BINS; i++) {
            const int bin = threadIdx.x * THREAD_BINS + i;
            if (plan.k_bin < 0 || bin < plan.k_bin) before += masses[i];
            if (plan.k_bin < 0 || bin <= plan.k_bin) upto += masses[i];
        }
        plan.mass = block_sum(before, shared);
        const double top_p = sampling.top_p;
        plan.kept_bins = find_place(masses, 0, top_p * (double)plan.mass, shared).index;
        plan.last_bin = find_place(masses, 0, top_p * (double)block_sum(upto, shared), shared).index;
    }
    if (threadIdx.x == 0) p.scratch.plans[row] = plan;
}

// grid (chunks, rows)
KERNEL __launch_bounds__(THREADS) sampling_rank(const __grid_constant__ SampleParams p) {
    wait_for_previous();
    __shared__ BlockScratch shared;
    __shared__ u32 counts[BINS];
    __shared__ u64 masses[BINS];
    const int row = blockIdx.y;
    const SamplingRow& sampling = p.sampling_rows[row];
    if (!(sampling.temperature > 0.0f) || !ranks_values(sampling, p.vocab) || has_small_top_k(p, sampling)) return;
    const u64 rank = row_largest(p.scratch.ranks + (i64)row * p.scan.chunks, p.scan.chunks);
    if (greedy_id(rank) < 0) return;
    const Row values(p, row, from_ordered(rank_bits(rank)));
    const bool weighs = has_top_p(sampling);
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) counts[bin] = 0, masses[bin] = 0;
    __syncthreads();
    const int first = blockIdx.x * p.rank.slices, end = min(first + p.rank.slices, p.num_slices);
    for (int slice = first; slice < end; slice++) {
        const Slice loaded(values.logits, slice, p.vocab);
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const float logit[4] = {loaded.quad[i].x, loaded.quad[i].y, loaded.quad[i].z, loaded.quad[i].w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (loaded.id(i) + j >= p.vocab) continue;
                const u32 depth = values.depth(logit[j]);
                const int bin = bin_of(depth);
                if (bin == BINS - 1) continue;  // what is not found before it ends there
                atomicAdd(&counts[bin], 1u);
                if (weighs) atomicAdd(&masses[bin], mass_of(depth));
            }
        }
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) {
        if (counts[bin] == 0) continue;
        atomicAdd(&p.scratch.counts[(i64)row * BINS + bin], counts[bin]);
        if (weighs) atomicAdd(&p.scratch.masses[(i64)row * BINS + bin], masses[bin]);
    }
    if (arrives_last(&p.scratch.plans[row].rank_arrivals, p.rank.chunks)) make_plan(p, row, shared);
}

// ---- the ends of top-k and top-p

// Returns whether values of this bin are left for the last block to decide on.
DEVICE bool is_undecided(const Plan& plan, int bin) {
    return (bin >= plan.kept_bins && bin <= plan.last_bin) || bin == plan.k_bin;
}

// The row's undecided values; the block shares them. Not a lambda: some releases of NVRTC refuse a generic one here.
struct Undecided {
    const SampleParams& p;
    int row;
    const Row& values;
    const Plan& plan;

    // Call `visit(depth, id)` for each, in any order.
    template <typename Visit>
    DEVICE void each(Visit visit) const {
        if (plan.num_listed <= CAPACITY) {
            const u64* listed = p.scratch.listed + (i64)row * CAPACITY;
            for (u32 i = threadIdx.x; i < plan.num_listed; i += THREADS) {
                const u64 entry = read_once_more(listed + i);
                visit((u32)(entry >> 32), (int)(u32)entry);
            }
        } else {
            for (int id = threadIdx.x; id < p.vocab; id += THREADS) {
                const u32 depth = values.depth(values.logits[id]);
                if (is_undecided(plan, bin_of(depth))) visit(depth, id);
            }
        }
    }
};

// Those of them that are in one bin.
struct UndecidedOfBin {
    const Undecided& undecided;
    int bin;

    template <typename Visit>
    DEVICE void each(Visit visit) const {
        undecided.each([&](u32 depth, int id) {
            if (bin_of(depth) == bin) visit(depth, id);
        });
    }
};

// The largest depth that top-k and top-p keep.
DEVICE u32 deepest_kept(const SampleParams& p, int row, const Plan& plan, const Undecided& undecided, u64* digits,
                        BlockScratch& shared) {
    u32 deepest = 0x7FFFFFFFu;
    u64 mass = plan.mass;
    if (plan.k_bin >= 0) {
        const auto one = [](u32) -> u64 { return 1; };
        const UndecidedOfBin candidates = {undecided, plan.k_bin};
        const DepthEnd end = descend(candidates, plan.count_before, (double)plan.k, one, digits, shared);
        deepest = end.depth;
        u64 own = 0;
        candidates.each([&](u32 depth, int) {
            if (depth < end.depth) own += mass_of(depth);
        });
        mass += block_sum(own, shared) + (plan.k - end.before) * mass_of(end.depth);
    }
    if (has_top_p(p.sampling_rows[row])) {
        u64 masses[THREAD_BINS];
        load_bins(p.scratch.masses + (i64)row * BINS, masses);
        const double wanted = (double)p.sampling_rows[row].top_p * (double)mass;
        const Place place = find_place(masses, 0, wanted, shared);
        const auto mass_at = [](u32 depth) { return mass_of(depth); };
        const UndecidedOfBin candidates = {undecided, place.index};
        const DepthEnd end = descend(candidates, place.before, wanted, mass_at, digits, shared);
        deepest = min(deepest, end.depth);
    }
    return deepest;
}

// ---- the draw

// The depth of the last bin that holds anything kept or undecided, and a little more than it is off by when it is
// rough.
DEVICE float rough_limit(const Plan& plan) {
    const int last_bin = max(plan.kept_bins - 1, max(plan.last_bin, plan.k_bin));
    return last_bin >= BINS - 1 ? POSITIVE_INFINITY : (float)(last_bin + 1) * (1.00001f / BINS_PER_UNIT) + 1e-5f;
}

// grid (chunks, rows)
KERNEL __launch_bounds__(THREADS) sampling_draw(const __grid_constant__ SampleParams p) {
    wait_for_previous();
    __shared__ BlockScratch shared;
    __shared__ u64 digits[THREADS];
    const int row = blockIdx.y;
    const u64 rank = row_largest(p.scratch.ranks + (i64)row * p.scan.chunks, p.scan.chunks);
    const SamplingRow& sampling = p.sampling_rows[row];
    const bool draws = sampling.temperature > 0.0f;
    const bool is_of_one_block = !draws || has_small_top_k(p, sampling);
    if (is_of_one_block && blockIdx.x > 0) return;
    if (!draws || greedy_id(rank) < 0) {
        if (blockIdx.x == 0 && threadIdx.x == 0) give_out(p, row, greedy_id(rank));
        return;
    }
    const Row values(p, row, from_ordered(rank_bits(rank)));
    if (is_of_one_block) return draw_of_small_top_k(p, row, values, rank, digits, shared);
    Plan plan = p.scratch.plans[row];
    const u64 key = sampling.key, position = p.output_positions[row];
    const float deepest = deepest_drawn(sampling.min_p);
    const bool is_ranked = ranks_values(sampling, p.vocab);
    const float limit = is_ranked ? rough_limit(plan) : deepest + ROUGH_ERROR;
    const float inverse = 1.0f / values.temperature;
    u64* listed = p.scratch.listed + (i64)row * CAPACITY;
    Best best;
    best.expect(rank_id(rank), position, key);
    const int first = blockIdx.x * p.draw.slices, end = min(first + p.draw.slices, p.num_slices);
    for (int slice = first; slice < end; slice++) {
        const u64 group_rank = p.scratch.group_ranks[((i64)row * p.num_slices + slice) * GROUPS + threadIdx.x / 32];
        if ((values.largest - from_ordered(rank_bits(group_rank))) * inverse > limit) continue;
        const Slice loaded(values.logits, slice, p.vocab);
#pragma unroll 1
        for (int i = 0; i < QUADS; i++) {
            const float4 quad = i == 0   ? loaded.quad[0]
                                : i == 1 ? loaded.quad[1]
                                : i == 2 ? loaded.quad[2]
                                         : loaded.quad[3];
            const float logit[4] = {quad.x, quad.y, quad.z, quad.w};
            const int id = loaded.id(i);
            float rough_depth[4];
            bool may_win = false;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                rough_depth[j] = (values.largest - logit[j]) * inverse;
                may_win |= !(rough_depth[j] > limit);
            }
            if (!may_win) continue;
            const uint4 noise = philox(id / 4, position, key);
            const u32 word[4] = {noise.x, noise.y, noise.z, noise.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (rough_depth[j] > limit) continue;
                const bool is_close = may_exceed(best.bound + rough_depth[j], word[j]);
                if (!is_close && !is_ranked) continue;
                const u32 depth = values.depth(logit[j]);
                const int bin = bin_of(depth);
                if (is_undecided(plan, bin) && id + j < p.vocab) {
                    const u32 at = atomicAdd(&p.scratch.plans[row].num_listed, 1u);
                    if (at < CAPACITY) listed[at] = (u64)depth << 32 | (u32)(id + j);
                }
                if (is_close && bin < plan.kept_bins && __uint_as_float(depth) <= deepest)
                    best.consider(rough_score(depth, word[j]), depth, word[j], id + j);
            }
        }
        best.bound = warp_max(best.bound);
    }
    best.reduce(shared);
    double* scores = p.scratch.scores + (i64)row * p.draw.chunks;
    int* score_ids = p.scratch.score_ids + (i64)row * p.draw.chunks;
    if (threadIdx.x == 0) scores[blockIdx.x] = best.score, score_ids[blockIdx.x] = best.id;
    if (!arrives_last(&p.scratch.plans[row].draw_arrivals, p.draw.chunks)) return;

    for (int chunk = threadIdx.x; chunk < p.draw.chunks; chunk += THREADS)
        best.take(read_once_more(scores + chunk), read_once_more(score_ids + chunk));
    plan.num_listed = read_once_more(&p.scratch.plans[row].num_listed);
    if (plan.num_listed > 0) {
        const Undecided undecided = {p, row, values, plan};
        const u32 deepest_depth = min(deepest_kept(p, row, plan, undecided, digits, shared), __float_as_uint(deepest));
        undecided.each([&](u32 depth, int id) {
            if (depth > deepest_depth) return;
            const u32 word = word_of(philox(id / 4, position, key), id);
            best.consider(rough_score(depth, word), depth, word, id);
        });
    }
    best.reduce(shared);
    if (threadIdx.x == 0) give_out(p, row, best.id == NO_ID ? -1 : best.id);
}
