// From logits to token ids, second part: top-k, top-p, min-p and the draw. Greedy rows leave at once.
//
// `sampling_rank` makes a histogram of how far values lie below the largest. It decides all bins but the few in which
// top-k and top-p end. `sampling_draw` scores what is kept for certain and lists the values of the other bins; the
// last block of a row finds the exact ends among these, and scores what remains.
#include "sampling_plan.cuh"

constexpr float WIDEST_NOISE = 20.3f;  // MAX_GUMBEL - MIN_GUMBEL of the reference: what lies deeper cannot win
constexpr float ROUGH_ERROR = 1e-4f;   // more than `rough_gumbel` and a sum in float32 are off by
constexpr int NO_ID = 0x7FFFFFFF;

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
    if (!(sampling.temperature > 0.0f) || !ranks_values(sampling, p.vocab)) return;
    const u64 rank = row_largest(p.scratch.ranks + (i64)row * p.scan.chunks, p.scan.chunks);
    if (greedy_id(rank) < 0) return;
    const Row values(p, row, from_ordered(rank_bits(rank)));
    const bool weighs = has_top_p(sampling);
    // At least top-k groups have a value down to here, so that what lies deeper is none of the top-k values.
    const u64* group_ranks = p.scratch.group_ranks + (i64)row * p.num_slices * GROUPS;
    const int num_groups = p.num_slices * GROUPS;
    u32 deepest = 0xFFFFFFFFu;
    if (has_top_k(sampling, p.vocab) && sampling.top_k <= num_groups)
        deepest = values.depth_of_rank(wanted_rank(group_ranks, num_groups, sampling.top_k, masses));
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) counts[bin] = 0, masses[bin] = 0;
    __syncthreads();
    const int first = blockIdx.x * p.rank.slices, end = min(first + p.rank.slices, p.num_slices);
    for (int slice = first; slice < end; slice++) {
        if (values.depth_of_rank(group_ranks[slice * GROUPS + threadIdx.x / 32]) > deepest) continue;
        const Slice loaded(values.logits, slice, p.vocab);
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const float logit[4] = {loaded.quad[i].x, loaded.quad[i].y, loaded.quad[i].z, loaded.quad[i].w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (loaded.id(i) + j >= p.vocab) continue;
                const u32 depth = values.depth(logit[j]);
                const int bin = bin_of(depth);
                if (bin == BINS - 1 || depth > deepest) continue;  // what is not found before it ends there
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

// ---- noise

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

// The best score so far; of equal ones the lowest id.
struct Best {
    double score = NEGATIVE_INFINITY;
    int id = NO_ID;
    float bound = NEGATIVE_INFINITY;  // a score that some thread of the warp has reached

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

struct DepthEnd {
    u32 depth;
    u64 before;  // the sum over lesser depths
};

// The depth in `bin` with which the sum of `amount(depth)` over all up to it reaches `wanted`; `before` is the sum of
// the bins before. Digit by digit of its bits, eight at a time.
template <typename Amount>
DEVICE DepthEnd descend(const Undecided& undecided, int bin, u64 before, double wanted, Amount amount, u64* digits,
                        BlockScratch& shared) {
    u64 prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        digits[threadIdx.x] = 0;
        __syncthreads();
        undecided.each([&](u32 depth, int) {
            if (bin_of(depth) == bin && (u64)depth >> (shift + 8) == prefix)
                atomicAdd(&digits[depth >> shift & 255], amount(depth));
        });
        __syncthreads();
        const u64 own[1] = {digits[threadIdx.x]};
        const Place place = find_place(own, before, wanted, shared);
        prefix = prefix << 8 | place.index;
        before = place.before;
    }
    return {(u32)prefix, before};
}

// The largest depth that top-k and top-p keep.
DEVICE u32 deepest_kept(const SampleParams& p, int row, const Plan& plan, const Undecided& undecided, u64* digits,
                        BlockScratch& shared) {
    u32 deepest = 0x7FFFFFFFu;
    u64 mass = plan.mass;
    if (plan.k_bin >= 0) {
        const auto one = [](u32) -> u64 { return 1; };
        const DepthEnd end = descend(undecided, plan.k_bin, plan.count_before, (double)plan.k, one, digits, shared);
        deepest = end.depth;
        u64 own = 0;
        undecided.each([&](u32 depth, int) {
            if (bin_of(depth) == plan.k_bin && depth < end.depth) own += mass_of(depth);
        });
        mass += block_sum(own, shared) + (plan.k - end.before) * mass_of(end.depth);
    }
    if (has_top_p(p.sampling_rows[row])) {
        u64 masses[THREAD_BINS];
        load_bins(p.scratch.masses + (i64)row * BINS, masses);
        const double wanted = (double)p.sampling_rows[row].top_p * (double)mass;
        const Place place = find_place(masses, 0, wanted, shared);
        const auto mass_at = [](u32 depth) { return mass_of(depth); };
        const DepthEnd end = descend(undecided, place.index, place.before, wanted, mass_at, digits, shared);
        deepest = min(deepest, end.depth);
    }
    return deepest;
}

// ---- the draw

// Returns whether noise can exceed `score`. Noise is -log(-log(u)) of a uniform u, and -log(u) >= 1 - u, so that
// exceeding takes 1 - u < exp(-score). What is rough here errs towards true, a sum that is no number included.
DEVICE bool may_exceed(float score, u32 word) {
    constexpr float LOG2_E = 1.4426950408889634f, SLACK = 1e-3f;  // more than the depth and exp2f are off by
    return !((float)(~word >> 8) * 0x1p-24f > exp2f((SLACK - score) * LOG2_E));
}

// The depth of the last bin that holds anything kept or undecided, and a little more than it is off by when it is
// rough.
DEVICE float rough_limit(const Plan& plan) {
    const int last_bin = max(plan.kept_bins - 1, max(plan.last_bin, plan.k_bin));
    return last_bin >= BINS - 1 ? POSITIVE_INFINITY : (float)(last_bin + 1) * (1.00001f / BINS_PER_UNIT) + 1e-5f;
}

DEVICE u32 word_of(const uint4& words, int id) {
    return id % 4 == 0 ? words.x : id % 4 == 1 ? words.y : id % 4 == 2 ? words.z : words.w;
}

// The lowest value that min-p keeps and noise can lift above the largest, as a depth.
DEVICE float deepest_drawn(float min_p) { return fminf(fabsf((float)log((double)min_p)), WIDEST_NOISE); }

// grid (chunks, rows)
KERNEL __launch_bounds__(THREADS) sampling_draw(const __grid_constant__ SampleParams p) {
    wait_for_previous();
    __shared__ BlockScratch shared;
    __shared__ u64 digits[THREADS];
    const int row = blockIdx.y;
    const SamplingRow& sampling = p.sampling_rows[row];
    const bool draws = sampling.temperature > 0.0f;
    if (!draws && blockIdx.x > 0) return;
    const u64 rank = row_largest(p.scratch.ranks + (i64)row * p.scan.chunks, p.scan.chunks);
    if (!draws || greedy_id(rank) < 0) {
        if (blockIdx.x == 0 && threadIdx.x == 0) give_out(p, row, greedy_id(rank));
        return;
    }
    const Row values(p, row, from_ordered(rank_bits(rank)));
    Plan plan = p.scratch.plans[row];
    const u64 key = sampling.key, position = p.output_positions[row];
    const float deepest = deepest_drawn(sampling.min_p);
    const bool is_ranked = ranks_values(sampling, p.vocab);
    const float limit = is_ranked ? rough_limit(plan) : deepest + ROUGH_ERROR;
    const float inverse = 1.0f / values.temperature;
    u64* listed = p.scratch.listed + (i64)row * CAPACITY;
    Best best;
    best.bound = rough_gumbel(word_of(philox(rank_id(rank) / 4, position, key), rank_id(rank))) - ROUGH_ERROR;
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
