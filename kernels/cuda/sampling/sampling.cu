// From logits to token ids, first part: masks, edits, the largest of each row.
// The largest is all that greedy rows cost; sampling_draw.cu goes on for the others.
#include "sampling.cuh"
#include "sampling_plan.cuh"

// How a row of LogitEdits begins: with which of the counts and of the biases that were sent.
struct EditReset {
    int row;
    int first_count;
    int num_counts;
    int first_bias;
    int num_biases;
};

struct TokenCount {
    int token_id;
    int word;  // of the edits' counts
};

struct ResetParams {
    EditPointers edits;
    const EditReset* resets;   // [num_resets]
    const TokenCount* counts;  // [] of all resets
    const TokenBias* biases;   // [] of all resets
};

struct MaskParams {
    float* logits;       // [num_rows, vocab]
    const int* numbers;  // [num_rows], of each row's mask, or `ANY_ID`, or `encode_only_id`
    const u32* masks;    // [num_masks, num_words], bit i of word w: whether id 32 * w + i may be drawn
    int vocab;
    int num_words;
};

// grid (chunks, resets): forget what the rows counted.
KERNEL __launch_bounds__(THREADS) sampling_clear_edits(const __grid_constant__ ResetParams p) {
    wait_for_previous();
    const int at = blockIdx.x * THREADS + threadIdx.x;  // of eight counts
    if (at >= p.edits.counts_stride / 8) return;
    ((uint4*)p.edits.counts_of(p.resets[blockIdx.y].row))[at] = make_uint4(0, 0, 0, 0);
}

// grid (chunks, resets): the rows begin with what was sent.
KERNEL __launch_bounds__(THREADS) sampling_fill_edits(const __grid_constant__ ResetParams p) {
    wait_for_previous();
    const EditReset reset = p.resets[blockIdx.y];
    const int first = blockIdx.x * THREADS + threadIdx.x, step = gridDim.x * THREADS;
    for (int i = first; i < reset.num_counts; i += step) {
        const TokenCount entry = p.counts[reset.first_count + i];
        p.edits.counts_of(reset.row)[entry.token_id] = entry.word;
    }
    for (int i = first; i < reset.num_biases; i += step)
        p.edits.biases_of(reset.row)[i] = p.biases[reset.first_bias + i];
}

// As kernels/batch.py has them.
constexpr int ANY_ID = -1;
DEVICE int decode_only_id(int number) { return -2 - number; }

// Word `word` of the mask of this number.
DEVICE u32 mask_word(const MaskParams& p, int number, int word) {
    if (number >= 0) return p.masks[(i64)number * p.num_words + word];
    const int id = decode_only_id(number);
    return id / 32 == word ? 1u << id % 32 : 0;
}

// grid (chunks, rows): each thread reads one word, and a warp applies its 32 words one after the other, a lane a bit.
// So words are read and logits written in whole lines wherever a row starts, and no logit is read.
KERNEL __launch_bounds__(THREADS) sampling_mask(const __grid_constant__ MaskParams p) {
    wait_for_previous();
    const int row = blockIdx.y, lane = threadIdx.x % 32, word = blockIdx.x * THREADS + threadIdx.x;
    const int number = p.numbers[row];
    if (number == ANY_ID) return;
    const u32 allowed = word < p.num_words ? mask_word(p, number, word) : ~0u;
    float* logits = p.logits + (i64)row * p.vocab;
    int id = (word - lane) * 32 + lane;
#pragma unroll
    for (int i = 0; i < 32; i++, id += 32) {
        const u32 bits = __shfl_sync(ALL_LANES, allowed, i);
        if (!(bits >> lane & 1) && id < p.vocab) logits[id] = NEGATIVE_INFINITY;
    }
}

// Adds biases to the logits of ids in [first_id, end_id), and bans those that cannot be drawn yet.
DEVICE void apply_biases(const SampleParams& p, int row, const SamplingRow& sampling, int first_id, int end_id) {
    const TokenBias* biases = p.edits.biases_of(sampling.edit_row);
    float* logits = p.logits + (i64)row * p.vocab;
    for (int i = threadIdx.x; i < sampling.num_biases; i += THREADS) {
        const TokenBias entry = biases[i];
        if (entry.token_id >= first_id && entry.token_id < end_id)
            logits[entry.token_id] = __fadd_rn(logits[entry.token_id], entry.bias);
    }
    __syncthreads();
    if (p.output_positions[row] < sampling.min_tokens)
        for (int i = threadIdx.x; i < sampling.num_banned; i += THREADS) {
            const int id = biases[sampling.num_biases + i].token_id;
            if (id >= first_id && id < end_id) logits[id] = NEGATIVE_INFINITY;
        }
    __syncthreads();
}

// The logit of a token that was in the prompt or in the output. Frequency is in doubles, as an int32 times a float32 is
// in NumPy.
DEVICE float penalised(float value, u32 count, const SamplingRow& sampling) {
    const float penalty = sampling.repetition_penalty;
    value = value > 0.0f ? __fdiv_rn(value, penalty) : __fmul_rn(value, penalty);
    const int times = count & MAX_COUNT;
    const double presence = times > 0 ? sampling.presence_penalty : 0.0f;
    const double frequency = __dmul_rn((double)sampling.frequency_penalty, (double)times);
    return (float)__dsub_rn((double)value, __dadd_rn(presence, frequency));
}

// Penalises what was loaded of a row, and writes what changed.
DEVICE void apply_penalties(const SampleParams& p, float* logits, Slice& loaded, const SamplingRow& sampling) {
    const u16* counts = p.edits.counts_of(sampling.edit_row);
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const int id = loaded.id(i);
        if (id >= p.vocab) continue;
        const ushort4 count = *(const ushort4*)(counts + id);
        if (!(count.x | count.y | count.z | count.w)) continue;
        float4& quad = loaded.quad[i];
        if (count.x) logits[id] = quad.x = penalised(quad.x, count.x, sampling);
        if (count.y) logits[id + 1] = quad.y = penalised(quad.y, count.y, sampling);
        if (count.z) logits[id + 2] = quad.z = penalised(quad.z, count.z, sampling);
        if (count.w) logits[id + 3] = quad.w = penalised(quad.w, count.w, sampling);
    }
}

// grid (chunks, rows): edits the row's logits where they are; the rank of each chunk's largest one. Makes a sampled
// row's plan and histogram ready.
KERNEL __launch_bounds__(THREADS) sampling_scan(const __grid_constant__ SampleParams p) {
    if (threadIdx.x == 0) prefetch(p.sampling_rows + blockIdx.y), prefetch(p.output_positions + blockIdx.y);
    wait_for_previous();
    __shared__ BlockScratch shared;
    const int row = blockIdx.y, chunk = blockIdx.x;
    float* logits = p.logits + (i64)row * p.vocab;
    const int first = chunk * p.scan.slices, end = min(first + p.scan.slices, p.num_slices);
    Slice loaded(logits, first, p.vocab);  // asked for beside the row's parameters
    const SamplingRow& sampling = p.sampling_rows[row];
    const bool is_edited = sampling.edit_row >= 0;
    if (is_edited && sampling.num_biases + sampling.num_banned > 0) {
        apply_biases(p, row, sampling, first * SLICE, end * SLICE);
        loaded = Slice(logits, first, p.vocab);
    }
    const bool is_drawn = sampling.temperature > 0.0f;
    u64* group_ranks = p.scratch.group_ranks + (i64)row * p.num_slices * GROUPS;
    u64 best_rank = 0;
    bool finite = true;
    for (int slice = first; slice < end; slice++) {
        if (slice > first) loaded = Slice(logits, slice, p.vocab);
        if (is_edited) apply_penalties(p, logits, loaded, sampling);
        float best = NEGATIVE_INFINITY;
        int best_id = loaded.id(0);
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const float value[4] = {loaded.quad[i].x, loaded.quad[i].y, loaded.quad[i].z, loaded.quad[i].w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                finite &= value[j] < POSITIVE_INFINITY;  // false of NaN
                if (value[j] > best) best = value[j], best_id = loaded.id(i) + j;
            }
        }
        u64 rank = rank_of(ordered_bits(best), best_id);
        if (is_drawn) {
            rank = warp_largest(rank);
            if (threadIdx.x % 32 == 0) group_ranks[slice * GROUPS + threadIdx.x / 32] = rank;
        }
        best_rank = rank > best_rank ? rank : best_rank;
    }
    const u64 rank = block_largest(finite ? best_rank : rank_of(NOT_FINITE, 0), shared);
    if (threadIdx.x == 0) p.scratch.ranks[(i64)row * p.scan.chunks + chunk] = rank;
    if (!is_drawn) return;
    if (chunk == 0 && threadIdx.x == 0) p.scratch.plans[row] = Plan{};
    if (!ranks_values(sampling, p.vocab)) return;
    for (int bin = chunk * THREADS + threadIdx.x; bin < BINS; bin += p.scan.chunks * THREADS) {
        p.scratch.counts[(i64)row * BINS + bin] = 0;
        p.scratch.masses[(i64)row * BINS + bin] = 0;
    }
}
