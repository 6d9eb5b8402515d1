// From logits to token ids, first part: the largest of each row, sparse edits, masks.
// The largest is all that greedy rows cost; sampling_draw.cu goes on for the others.
#include "sampling.cuh"
#include "sampling_plan.cuh"

struct AdjustParams {
    float* logits;                    // [num_rows, vocab]
    const int* rows;                  // [num_entries], -1: no entry
    const int* token_ids;             // [num_entries]
    const float* bias;                // [num_entries]
    const u8* seen;                   // [num_entries] bool
    const int* output_counts;         // [num_entries]
    const u8* banned;                 // [num_entries] bool
    const float* repetition_penalty;  // [num_rows]
    const float* presence_penalty;    // [num_rows]
    const float* frequency_penalty;   // [num_rows]
    int num_entries;
    int num_rows;
    int vocab;
};

struct MaskParams {
    float* logits;     // [num_rows, vocab]
    const int* rows;   // [num_masks]
    const u32* masks;  // [num_masks, num_words], bit i of word w: whether id 32 * w + i may be drawn
    int vocab;
    int num_words;
};

// Each thread has one entry. Frequency counts are doubles, as an int32 times a float32 is in NumPy.
KERNEL __launch_bounds__(THREADS) sampling_adjust(const __grid_constant__ AdjustParams p) {
    wait_for_previous();
    const int entry = blockIdx.x * THREADS + threadIdx.x;
    if (entry >= p.num_entries) return;
    const int row = p.rows[entry], id = p.token_ids[entry];
    if (row < 0 || row >= p.num_rows || id < 0 || id >= p.vocab) return;
    float* logit = p.logits + (i64)row * p.vocab + id;
    float value = __fadd_rn(*logit, p.bias[entry]);
    if (p.seen[entry]) {
        const float penalty = p.repetition_penalty[row];
        value = value > 0.0f ? __fdiv_rn(value, penalty) : __fmul_rn(value, penalty);
    }
    const int count = p.output_counts[entry];
    const double presence = count > 0 ? p.presence_penalty[row] : 0.0f;
    const double frequency = __dmul_rn((double)p.frequency_penalty[row], (double)count);
    value = (float)__dsub_rn((double)value, __dadd_rn(presence, frequency));
    *logit = p.banned[entry] ? NEGATIVE_INFINITY : value;
}

// grid (chunks, masks): each thread reads one word, and a warp applies its 32 words one after the other, a lane a bit.
// So words are read and logits written in whole lines wherever a row starts, and no logit is read.
KERNEL __launch_bounds__(THREADS) sampling_mask(const __grid_constant__ MaskParams p) {
    wait_for_previous();
    const int mask = blockIdx.y, lane = threadIdx.x % 32, word = blockIdx.x * THREADS + threadIdx.x;
    const u32 allowed = word < p.num_words ? p.masks[(i64)mask * p.num_words + word] : ~0u;
    float* logits = p.logits + (i64)p.rows[mask] * p.vocab;
    int id = (word - lane) * 32 + lane;
#pragma unroll
    for (int i = 0; i < 32; i++, id += 32) {
        const u32 bits = __shfl_sync(ALL_LANES, allowed, i);
        if (!(bits >> lane & 1) && id < p.vocab) logits[id] = NEGATIVE_INFINITY;
    }
}

// grid (chunks, rows): the rank of each chunk's largest logit. Makes a sampled row's plan and histogram ready.
KERNEL __launch_bounds__(THREADS) sampling_scan(const __grid_constant__ SampleParams p) {
    wait_for_previous();
    __shared__ BlockScratch shared;
    const int row = blockIdx.y, chunk = blockIdx.x;
    const float* logits = p.logits + (i64)row * p.vocab;
    const int first = chunk * p.scan.slices, end = min(first + p.scan.slices, p.num_slices);
    float best = NEGATIVE_INFINITY;
    int best_id = first * SLICE;
    bool finite = true;
    for (int slice = first; slice < end; slice++) {
        const Slice loaded(logits, slice, p.vocab);
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const float value[4] = {loaded.quad[i].x, loaded.quad[i].y, loaded.quad[i].z, loaded.quad[i].w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                finite &= value[j] < POSITIVE_INFINITY;  // false of NaN
                if (value[j] > best) best = value[j], best_id = loaded.id(i) + j;
            }
        }
    }
    const u64 rank = block_largest(rank_of(finite ? ordered_bits(best) : NOT_FINITE, best_id), shared);
    if (threadIdx.x == 0) p.scratch.ranks[(i64)row * p.scan.chunks + chunk] = rank;
    const SamplingRow& sampling = p.sampling_rows[row];
    if (!(sampling.temperature > 0.0f)) return;
    if (chunk == 0 && threadIdx.x == 0) p.scratch.plans[row] = Plan{};
    if (!ranks_values(sampling, p.vocab)) return;
    for (int bin = chunk * THREADS + threadIdx.x; bin < BINS; bin += p.scan.chunks * THREADS) {
        p.scratch.counts[(i64)row * BINS + bin] = 0;
        p.scratch.masses[(i64)row * BINS + bin] = 0;
    }
}
