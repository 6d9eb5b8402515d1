// What the kernels that draw share about a row: a histogram, and what is to be decided yet.
#pragma once
#include "sampling.cuh"

constexpr float BINS_PER_UNIT = 64;  // the last bin takes all from 31.98 on: too improbable to count, or to be drawn

// The default is that of a row without top-k and top-p, all bins of which are kept.
struct Plan {
    u64 mass = 0;           // of the values of top-k; where top-k is on, of those in bins before `k_bin`
    u64 count_before = 0;   // values in bins before `k_bin`
    u64 k = 0;              // 0: top-k is off
    int kept_bins = BINS;   // bins before this one are kept whole
    int last_bin = -1;      // from `kept_bins` to here: top-p ends in one of these
    int k_bin = -1;         // the bin in which top-k ends, -1: top-k is off
    u32 num_listed = 0;     // values in the bins that are not decided
    u32 rank_arrivals = 0;  // blocks of sampling_rank that are done with the row
    u32 draw_arrivals = 0;  // blocks of sampling_draw that are done with the row
};

// How a row's tokens are drawn.
struct SamplingRow {
    u64 key;
    float temperature;
    int top_k;
    float top_p;
    float min_p;
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    int min_tokens;
    int logprobs;    // -1: none are wanted
    int num_biases;  // of its row of edits
    int num_banned;  // behind the biases: ids that cannot be drawn before there are `min_tokens`
    int edit_row;    // -1: its logits are not edited
};

// What is added to the logit of a token.
struct TokenBias {
    int token_id;
    float bias;
};

// What changes the logits of sequences before a draw, a row for each sequence; see kernels/logit_edits.py.
struct EditPointers {
    u16* counts;        // [rows, counts_stride] by token id: IN_PROMPT, and how often it is in the output
    TokenBias* biases;  // [rows, biases_stride]
    int counts_stride;  // a multiple of 8
    int biases_stride;

    DEVICE u16* counts_of(int row) const { return counts + (i64)row * counts_stride; }
    DEVICE TokenBias* biases_of(int row) const { return biases + (i64)row * biases_stride; }
};

struct SampleScratch {
    u64* ranks;        // [num_rows, scan.chunks] of the largest logits
    u64* group_ranks;  // [num_rows, num_slices * GROUPS] the same of groups, of rows that are drawn at random
    Plan* plans;       // [num_rows]
    u32* counts;       // [num_rows, BINS] values
    u64* masses;       // [num_rows, BINS] probabilities
    u64* listed;       // [num_rows, CAPACITY] depth << 32 | id
    double* scores;    // [num_rows, draw.chunks] the best of each chunk
    int* score_ids;    // [num_rows, draw.chunks]
};

// How the blocks of a launch share out a row.
struct LaunchSplit {
    int slices;  // a block
    int chunks;  // blocks a row
};

struct SampleParams {
    float* logits;                     // [num_rows, vocab]
    const SamplingRow* sampling_rows;  // [num_rows]
    const i64* output_positions;       // [num_rows]
    int* out_ids;                      // [num_rows]
    int* host_ids;                     // [num_rows] in page-locked host memory, or null
    EditPointers edits;
    SampleScratch scratch;
    int num_rows;
    int vocab;
    int num_slices;
    LaunchSplit scan, rank, draw;
};

// Gives out the id that a row drew, and counts it as one of the output. One thread of the row calls it.
DEVICE void give_out(const SampleParams& p, int row, int id) {
    p.out_ids[row] = id;
    if (p.host_ids) p.host_ids[row] = id;
    const int edit_row = p.sampling_rows[row].edit_row;
    if (edit_row < 0 || id < 0) return;
    u16& count = p.edits.counts_of(edit_row)[id];
    if ((count & MAX_COUNT) < MAX_COUNT) count++;
}

DEVICE bool has_top_k(const SamplingRow& sampling, int vocab) { return sampling.top_k > 0 && sampling.top_k < vocab; }
DEVICE bool has_top_p(const SamplingRow& sampling) { return sampling.top_p < 1.0f; }
DEVICE bool ranks_values(const SamplingRow& sampling, int vocab) {
    return has_top_k(sampling, vocab) || has_top_p(sampling);
}

// A row that draws. A value's depth is how far it lies below the largest, after temperature: the bits of a float that
// is not negative, so that depths compare as integers, the most probable first.
struct Row {
    const float* logits;
    float largest, temperature;

    DEVICE Row(const SampleParams& p, int row, float largest)
        : logits(p.logits + (i64)row * p.vocab), largest(largest), temperature(p.sampling_rows[row].temperature) {}
    DEVICE u32 depth(float logit) const {
        return __float_as_uint(__fdiv_rn(__fsub_rn(logit, largest), temperature)) & 0x7FFFFFFFu;
    }
    DEVICE u32 depth_of_rank(u64 rank) const { return depth(from_ordered(rank_bits(rank))); }
};

DEVICE int bin_of(u32 depth) { return (int)fminf(__uint_as_float(depth) * BINS_PER_UNIT, BINS - 1.0f); }

DEVICE u64 mass_of(u32 depth) { return __double2ull_rn(exp(-(double)__uint_as_float(depth)) * 0x1p45); }

// Returns whether this block is the last of `num_blocks` to arrive here; then it sees what the others wrote.
DEVICE bool arrives_last(u32* arrivals, u32 num_blocks) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(arrivals, 1u) == num_blocks - 1;
    __syncthreads();
    __threadfence();
    return last;
}

// Amounts of a row's bins: thread t holds those from t * COUNT.
constexpr int THREAD_BINS = BINS / THREADS;
template <typename T>
DEVICE void load_bins(const T* bins, u64 (&amounts)[THREAD_BINS]) {
#pragma unroll
    for (int i = 0; i < THREAD_BINS; i++) amounts[i] = read_once_more(bins + threadIdx.x * THREAD_BINS + i);
}
