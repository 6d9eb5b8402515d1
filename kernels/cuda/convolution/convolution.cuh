// Short causal convolutions: each channel has taps of its own, and each sequence its last inputs as a state.
#pragma once
#include "../common/common.cuh"

// Which state slots the sequences of a step have: `StateRows` of kernels/batch.py.
struct StateRowsParams {
    const i32* slots;    // [num_sequences] -1: padding
    const i32* sources;  // [num_sequences] -1: there is no state yet
};

struct ConvolutionParams {
    const float* taps;         // [num_taps, channels], the last those of the token itself
    float* inputs;             // [num_slots, num_taps - 1, channels]
    const i32* positions;      // [num_tokens] -1: padding
    const i32* sequence_rows;  // [num_tokens]
    const i32* query_starts;   // [num_sequences + 1]
    StateRowsParams states;
    int num_sequences;
    int channels;  // a multiple of 4
    int num_taps;
};

DEVICE float4 load_halves(const u16* from) {  // four
    const uint2 pairs = *(const uint2*)from;
    return {low_half(pairs.x), high_half(pairs.x), low_half(pairs.y), high_half(pairs.y)};
}

// Inputs of four channels in a state: number `index` of those that it keeps; zeros where there is none.
DEVICE float4 kept_inputs(const ConvolutionParams& p, i32 source, int index, int channel) {
    if (source < 0) return {0.0f, 0.0f, 0.0f, 0.0f};
    return *(const float4*)(p.inputs + ((i64)source * (p.num_taps - 1) + index) * p.channels + channel);
}

// The sums of four channels from `channel` on for `token`, from the earliest tap to the latest. `input(token, channel)`
// gives what comes in, of tokens of the step; what came before them is in the state.
template <typename Input>
DEVICE float4 convolve(const ConvolutionParams& p, i32 token, int channel, Input input) {
    const i32 sequence = p.sequence_rows[token], source = p.states.sources[sequence];
    const i32 index = token - p.query_starts[sequence];
    const int num_before = p.num_taps - 1;
    const float* taps = p.taps + channel;
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int tap = 0; tap < p.num_taps; tap++) {
        const i32 at = index + tap - num_before;  // in the step's part of the sequence
        const float4 x =
            at >= 0 ? input(token + tap - num_before, channel) : kept_inputs(p, source, at + num_before, channel);
        const float4 w = *(const float4*)(taps + (i64)tap * p.channels);
        sum.x = fmaf(x.x, w.x, sum.x), sum.y = fmaf(x.y, w.y, sum.y);
        sum.z = fmaf(x.z, w.z, sum.z), sum.w = fmaf(x.w, w.w, sum.w);
    }
    return sum;
}

// Puts the last inputs of four channels of a sequence into its slot. The slot may be the one that they were read from:
// so no kernel may do this beside `convolve` of the same step.
template <typename Input>
DEVICE void keep_inputs(const ConvolutionParams& p, i32 sequence, int channel, Input input) {
    const i32 slot = p.states.slots[sequence], source = p.states.sources[sequence];
    const i32 start = p.query_starts[sequence], count = p.query_starts[sequence + 1] - start;
    const int num_before = p.num_taps - 1;
    for (int index = 0; index < num_before; index++) {  // upwards: what is read lies behind what is written
        const i32 at = count + index - num_before;
        const float4 x = at >= 0 ? input(start + at, channel) : kept_inputs(p, source, count + index, channel);
        *(float4*)(p.inputs + ((i64)slot * num_before + index) * p.channels + channel) = x;
    }
}
