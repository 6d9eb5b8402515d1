// Cosines and sines of rotary position embedding, once a step.
#include "../common/common.cuh"

struct RotationParams {
    const float* inverse_frequencies;  // [sets, num_pairs]
    const i32* positions;              // [num_tokens], -1: padding
    const i32* sequence_lengths;       // [num_sequences]
    const i32* sequence_rows;          // [num_tokens]
    float* cosine;                     // [num_tokens, num_pairs]
    float* sine;                       // [num_tokens, num_pairs]
    float* query_factors;              // [num_tokens]; null: queries do not grow
    i32 num_tokens, num_pairs;
    i32 long_after;  // sequences of more tokens take the second set of frequencies; -1: there is one set
    float attention_factor;
    float query_growth_rate;
    i32 query_growth_interval;
};

// Overlaps the previous kernel.
KERNEL rope_rotation(const __grid_constant__ RotationParams p) {
    start_next();
    acquire();
    const i32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < p.num_tokens * p.num_pairs) {
        const i32 token = index / p.num_pairs, pair = index - token * p.num_pairs;
        const bool is_long = p.long_after >= 0 && p.sequence_lengths[p.sequence_rows[token]] > p.long_after;
        const float frequency = p.inverse_frequencies[(is_long ? p.num_pairs : 0) + pair];
        // Rounded, as reference implementations do.
        const float angle = __fmul_rn((float)p.positions[token], frequency);
        float sine, cosine;
        sincosf(angle, &sine, &cosine);
        p.cosine[index] = cosine * p.attention_factor;
        p.sine[index] = sine * p.attention_factor;
        if (p.query_factors && pair == 0) {
            const i32 steps = max(p.positions[token], 0) / p.query_growth_interval;
            p.query_factors[token] = fmaf(p.query_growth_rate, log1pf((float)steps), 1.0f);
        }
    }
    wait_for_previous();
}
