// Log probabilities of drawn ids and of the most probable ones. Slices are the same whatever the batch, and sums are
// taken in a fixed order: a row's results depend on nothing but the row.
// MAX_TOP and MAX_SLICES are given when it is compiled.
#include "sampling_plan.cuh"

struct LogprobParams {
    const float* logits;               // [num_rows, vocab]
    const SamplingRow* sampling_rows;  // [num_rows]
    const int* ids;                    // [num_rows] drawn; -1: nothing is wanted of the row
    float* out_logprobs;               // [num_rows]
    int* out_top_ids;                  // [num_rows, most_top]
    float* out_top_logprobs;           // [num_rows, most_top]
    u64* ranks;    // [num_rows, num_slices, max(most_top, 1)] the largest logits, in order; 0: no more
    double* sums;  // [num_rows, num_slices] of exp(logit - the slice's largest)
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

// Takes the largest of the block's ranks away, and gives it to every thread; 0 where none is left.
template <int COUNT>
DEVICE u64 take_largest(u64 (&ranks)[COUNT], BlockScratch& shared) {
    u64 own = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) own = ranks[i] > own ? ranks[i] : own;
    const u64 largest = block_largest(own, shared);
#pragma unroll
    for (int i = 0; i < COUNT; i++) ranks[i] = ranks[i] == largest ? 0 : ranks[i];
    return largest;
}

// grid (slices, rows)
KERNEL __launch_bounds__(THREADS) sampling_logprobs_slice(const __grid_constant__ LogprobParams p) {
    wait_for_previous();
    __shared__ BlockScratch shared;
    const int row = blockIdx.y;
    const int num_top = min(p.sampling_rows[row].logprobs, p.most_top);
    if (p.ids[row] < 0 || num_top < 0) return;
    const i64 at = (i64)row * p.num_slices + blockIdx.x;
    const int num_ranks = max(num_top, 1);
    const Slice loaded(p.logits + (i64)row * p.vocab, blockIdx.x, p.vocab);
    u64 ranks[4 * QUADS];
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const float logit[4] = {loaded.quad[i].x, loaded.quad[i].y, loaded.quad[i].z, loaded.quad[i].w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int id = loaded.id(i) + j;
            ranks[4 * i + j] = id < p.vocab ? rank_of(ordered_bits(logit[j]), id) : 0;
        }
    }
    float largest = NEGATIVE_INFINITY;
    for (int i = 0; i < num_ranks; i++) {
        const u64 rank = take_largest(ranks, shared);
        if (i == 0) largest = from_ordered(rank_bits(rank));
        if (threadIdx.x == 0) p.ranks[at * max(p.most_top, 1) + i] = rank;
    }
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

// grid (rows)
KERNEL __launch_bounds__(THREADS) sampling_logprobs_merge(const __grid_constant__ LogprobParams p) {
    wait_for_previous();
    __shared__ BlockScratch shared;
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
    const int num_ranks = max(num_top, 1), num_listed = p.num_slices * num_ranks, stride = max(p.most_top, 1);
    const u64* listed = p.ranks + (i64)row * p.num_slices * stride;
    u64 ranks[MAX_SLICES * MAX_TOP / THREADS];
#pragma unroll
    for (int i = 0; i < MAX_SLICES * MAX_TOP / THREADS; i++) {
        const int at = i * THREADS + threadIdx.x;
        ranks[i] = at < num_listed ? listed[at / num_ranks * stride + at % num_ranks] : 0;
    }
    u64 rank = take_largest(ranks, shared);
    const double largest = from_ordered(rank_bits(rank));
    double sum = 0;
    if (threadIdx.x < p.num_slices) {
        const double slice_sum = p.sums[(i64)row * p.num_slices + threadIdx.x];
        const float slice_largest = from_ordered(rank_bits(listed[threadIdx.x * stride]));
        if (slice_sum > 0) sum = slice_sum * exp((double)slice_largest - largest);
    }
    const double log_sum = log(block_sum_exactly(sum, shared));
    if (threadIdx.x == 0) p.out_logprobs[row] = (float)((double)p.logits[(i64)row * p.vocab + id] - largest - log_sum);
    for (int i = 0; i < num_top; i++) {
        if (i > 0) rank = take_largest(ranks, shared);
        if (threadIdx.x > 0) continue;
        top_ids[i] = rank ? (int)rank_id(rank) : -1;
        top_logprobs[i] = rank ? (float)((double)from_ordered(rank_bits(rank)) - largest - log_sum) : NEGATIVE_INFINITY;
    }
}
