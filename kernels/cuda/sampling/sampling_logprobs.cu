// Log probabilities of drawn ids and of the most probable ones. Slices are the same whatever the batch, and sums are
// taken in a fixed order: a row's results depend on nothing but the row.
// MAX_TOP and MAX_SLICES are given when it is compiled.
#include "sampling_plan.cuh"

constexpr int MAX_GROUPS = MAX_SLICES * GROUPS;
constexpr int MAX_LISTED = MAX_TOP * MAX_TOP;  // as many groups as values are wanted can hold one, and each all of them

struct LogprobParams {
    const float* logits;               // [num_rows, vocab]
    const SamplingRow* sampling_rows;  // [num_rows]
    const int* ids;                    // [num_rows] drawn; -1: nothing is wanted of the row
    float* out_logprobs;               // [num_rows]
    int* out_top_ids;                  // [num_rows, most_top]
    float* out_top_logprobs;           // [num_rows, most_top]
    u64* group_ranks;                  // [num_rows, num_slices * GROUPS] of the largest logits
    double* sums;                      // [num_rows, num_slices] of exp(logit - the slice's largest)
    int num_rows;
    int vocab;
    int num_slices;
    int most_top;
};

// The sum of all threads' values, in a fixed order.
DEVICE double block_sum_exactly(double value, BlockScratch& shared) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) value += __shfl_xor_sync(ALL_LANES, value, distance);
    if (threadIdx.x % 32 == 0) shared.warp[threadIdx.x / 32] = __double_as_longlong(value);
    __syncthreads();
    double sum = 0;
    for (int warp = 0; warp < THREADS / 32; warp++) sum += __longlong_as_double(shared.warp[warp]);
    __syncthreads();
    return sum;
}

// The ranks of what the warp loaded of a slice; 0 beyond the row's end.
DEVICE void load_ranks(const Slice& loaded, int vocab, u64 (&ranks)[4 * QUADS]) {
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const float logit[4] = {loaded.quad[i].x, loaded.quad[i].y, loaded.quad[i].z, loaded.quad[i].w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int id = loaded.id(i) + j;
            ranks[4 * i + j] = id < vocab ? rank_of(ordered_bits(logit[j]), id) : 0;
        }
    }
}

template <int COUNT>
DEVICE u64 largest_of(const u64 (&ranks)[COUNT]) {
    u64 largest = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) largest = ranks[i] > largest ? ranks[i] : largest;
    return largest;
}

template <int COUNT>
DEVICE void remove(u64 (&ranks)[COUNT], u64 rank) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) ranks[i] = ranks[i] == rank ? 0 : ranks[i];
}

// grid (slices, rows): the largest of each group, and the sum of each slice.
KERNEL __launch_bounds__(THREADS) sampling_logprobs_slice(const __grid_constant__ LogprobParams p) {
    wait_for_previous();
    __shared__ BlockScratch shared;
    const int row = blockIdx.y, warp = threadIdx.x / 32;
    if (p.ids[row] < 0 || p.sampling_rows[row].logprobs < 0) return;
    const i64 at = (i64)row * p.num_slices + blockIdx.x;
    const Slice loaded(p.logits + (i64)row * p.vocab, blockIdx.x, p.vocab);
    u64 ranks[4 * QUADS];
    load_ranks(loaded, p.vocab, ranks);
    const u64 group_rank = warp_largest(largest_of(ranks));
    if (threadIdx.x % 32 == 0) p.group_ranks[at * GROUPS + warp] = group_rank;
    const float largest = from_ordered(rank_bits(block_largest(group_rank, shared)));
    double sum = 0;
    if (largest > NEGATIVE_INFINITY) {
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const float4 quad = loaded.quad[i];  // what is beyond the end is -inf, and adds nothing
            sum += (double)expf(quad.x - largest) + (double)expf(quad.y - largest);
            sum += (double)expf(quad.z - largest) + (double)expf(quad.w - largest);
        }
    }
    sum = block_sum_exactly(sum, shared);
    if (threadIdx.x == 0) p.sums[at] = sum;
}

// Lists the `num_top` largest of the row's values, and maybe some more; returns how many are listed.
DEVICE int list_largest(const LogprobParams& p, int row, int num_top, const u64* group_ranks, u64* copies,
                        u64* listed) {
    __shared__ int num_listed;
    const int num_groups = p.num_slices * GROUPS;
    if (threadIdx.x == 0) num_listed = 0;
    // So many groups have a value that is as large: none of the others has one of the largest. With fewer groups than
    // values it is 0, and all of them are looked at.
    const u64 least = wanted_rank(group_ranks, num_groups, num_top, copies);
    for (int slice = 0; slice < p.num_slices; slice++) {
        if (copies[slice * GROUPS + threadIdx.x / 32] < least) continue;
        u64 ranks[4 * QUADS];
        load_ranks(Slice(p.logits + (i64)row * p.vocab, slice, p.vocab), p.vocab, ranks);
        for (int i = 0; i < num_top; i++) {
            const u64 rank = warp_largest(largest_of(ranks));
            if (rank < least || rank == 0) break;
            if (threadIdx.x % 32 == 0) listed[atomicAdd(&num_listed, 1)] = rank;
            remove(ranks, rank);
        }
    }
    __syncthreads();
    return num_listed;
}

// grid (rows)
KERNEL __launch_bounds__(THREADS) sampling_logprobs_merge(const __grid_constant__ LogprobParams p) {
    wait_for_previous();
    __shared__ BlockScratch shared;
    __shared__ u64 copies[MAX_GROUPS], listed[MAX_LISTED];
    const int row = blockIdx.x, id = p.ids[row];
    const int num_top = min(p.sampling_rows[row].logprobs, p.most_top);
    int* top_ids = p.out_top_ids + (i64)row * p.most_top;
    float* top_logprobs = p.out_top_logprobs + (i64)row * p.most_top;
    const bool wants_none = id < 0 || id >= p.vocab || num_top < 0;
    for (int i = (wants_none ? 0 : num_top) + threadIdx.x; i < p.most_top; i += THREADS)
        top_ids[i] = -1, top_logprobs[i] = NEGATIVE_INFINITY;
    if (wants_none) {
        if (threadIdx.x == 0) p.out_logprobs[row] = NEGATIVE_INFINITY;
        return;
    }
    const u64* group_ranks = p.group_ranks + (i64)row * p.num_slices * GROUPS;
    u64 slice_rank = 0;
    if (threadIdx.x < p.num_slices)
        for (int group = 0; group < GROUPS; group++) {
            const u64 rank = group_ranks[threadIdx.x * GROUPS + group];
            slice_rank = rank > slice_rank ? rank : slice_rank;
        }
    const double largest = from_ordered(rank_bits(block_largest(slice_rank, shared)));
    double sum = 0;
    if (threadIdx.x < p.num_slices) {
        const double slice_sum = p.sums[(i64)row * p.num_slices + threadIdx.x];
        if (slice_sum > 0) sum = slice_sum * exp((double)from_ordered(rank_bits(slice_rank)) - largest);
    }
    const double log_sum = log(block_sum_exactly(sum, shared));
    if (threadIdx.x == 0) p.out_logprobs[row] = (float)((double)p.logits[(i64)row * p.vocab + id] - largest - log_sum);
    if (num_top == 0) return;
    const int num_listed = list_largest(p, row, num_top, group_ranks, copies, listed);
    u64 ranks[(MAX_LISTED + THREADS - 1) / THREADS];
#pragma unroll
    for (int i = 0; i < (MAX_LISTED + THREADS - 1) / THREADS; i++) {
        const int at = i * THREADS + threadIdx.x;
        ranks[i] = at < num_listed ? listed[at] : 0;
    }
    for (int i = 0; i < num_top; i++) {
        const u64 rank = block_largest(largest_of(ranks), shared);
        remove(ranks, rank);
        if (threadIdx.x > 0) continue;
        top_ids[i] = rank ? (int)rank_id(rank) : -1;
        top_logprobs[i] = rank ? (float)((double)from_ordered(rank_bits(rank)) - largest - log_sum) : NEGATIVE_INFINITY;
    }
}
