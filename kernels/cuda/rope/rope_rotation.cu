// Cosines and sines of rotary position embedding, once a step.
#include "rope_angles.cuh"

struct RotationParams {
    AngleParams angles;
    const i32* positions;         // [num_tokens], -1: padding
    const i32* sequence_lengths;  // [num_sequences]
    const i32* sequence_rows;     // [num_tokens]
    float* cosine;                // [num_tokens, num_pairs]
    float* sine;                  // [num_tokens, num_pairs]
    float* query_factors;         // [num_tokens]; null: queries do not grow
    i32 num_tokens;
};

// Overlaps the previous kernel.
KERNEL rope_rotation(const __grid_constant__ RotationParams p) {
    start_next();
    acquire();
    const i32 num_pairs = p.angles.num_pairs, index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < p.num_tokens * num_pairs) {
        const i32 token = index / num_pairs, pair = index - token * num_pairs;
        const i32 position = p.positions[token], length = p.sequence_lengths[p.sequence_rows[token]];
        const float2 angle = angle_of(p.angles, position, length, pair);
        p.cosine[index] = angle.x;
        p.sine[index] = angle.y;
        if (p.query_factors && pair == 0) p.query_factors[token] = query_factor_of(p.angles, position);
    }
    wait_for_previous();
}
