// Rotary position embedding: angles of a step's tokens, and their use on Q and K with the write of K and V.
#include "common.cuh"

// ---- cosines and sines, once a step

struct RotationParams {
    const float* inverse_frequencies;  // [sets, num_pairs]
    const i32* positions;              // [num_tokens], -1: padding
    const i32* sequence_lengths;       // [num_sequences]
    const i32* sequence_rows;          // [num_tokens]
    float* cosine;                     // [num_tokens, num_pairs]
    float* sine;                       // [num_tokens, num_pairs]
    i32 num_tokens, num_pairs;
    i32 long_after;  // sequences of more tokens take the second set of frequencies; -1: there is one set
    float attention_factor;
};

KERNEL rope_rotation(const __grid_constant__ RotationParams p) {
    let_next_start();
    wait_for_previous();
    const i32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= p.num_tokens * p.num_pairs) return;
    const i32 token = index / p.num_pairs, pair = index - token * p.num_pairs;
    const bool is_long = p.long_after >= 0 && p.sequence_lengths[p.sequence_rows[token]] > p.long_after;
    const float frequency = p.inverse_frequencies[(is_long ? p.num_pairs : 0) + pair];
    const float angle = __fmul_rn((float)p.positions[token], frequency);  // rounded, as reference implementations do
    float sine, cosine;
    sincosf(angle, &sine, &cosine);
    p.cosine[index] = cosine * p.attention_factor;
    p.sine[index] = sine * p.attention_factor;
}

// ---- norms of heads, rotation, write of K and V. A warp has one head of one token, a lane 4 elements of it (8 of
// heads beyond 128): two pairs where heads are rotated, else 4 neighbours.

#ifdef HEAD_DIM

constexpr int LANE_SLOTS = (HEAD_DIM / 4 + 31) / 32;
constexpr int WARPS = 8;

struct WriteParams {
    u16* qkv;              // [num_tokens, (num_heads + 2 * num_kv_heads) * HEAD_DIM]
    const i32* slots;      // [num_tokens] block * block_tokens + row, -1: padding
    const float* cosine;   // [num_tokens, num_pairs] or null: no rotation
    const float* sine;     // [num_tokens, num_pairs]
    const float* query_norm;  // [HEAD_DIM] or null: no norms
    const float* key_norm;    // [HEAD_DIM]
    u16* keys;             // [num_blocks, num_kv_heads, block_tokens, HEAD_DIM]
    u16* values;           // [num_blocks, num_kv_heads, block_tokens, HEAD_DIM]
    i32 num_tokens, num_heads, num_kv_heads, block_tokens, num_pairs, neox;
    float query_epsilon, key_epsilon;
};

// Where a lane's slot `slot` has its elements: pairs (first, second) and (first + step, second + step).
struct Place {
    i32 first, second, step;
    i32 pair;  // of the first two; -1: not rotated
};

DEVICE Place place_of(const WriteParams& p, i32 slot) {
    const i32 pair = 2 * slot;
    if (pair >= p.num_pairs) return {2 * pair, 2 * pair + 1, 2, -1};
    return p.neox ? Place{pair, pair + p.num_pairs, 1, pair} : Place{2 * pair, 2 * pair + 1, 2, pair};
}

KERNEL __launch_bounds__(WARPS * 32) rope_write(const __grid_constant__ WriteParams p) {
    let_next_start();
    wait_for_previous();
    const int lane = threadIdx.x % 32;
    const i32 row_heads = p.num_heads + 2 * p.num_kv_heads;
    const i32 index = blockIdx.x * WARPS + threadIdx.x / 32;
    const i32 token = index / row_heads, head = index - token * row_heads;
    if (token >= p.num_tokens) return;
    const i32 slot = p.slots[token];
    if (slot < 0) return;
    u16* source = p.qkv + (i64)index * HEAD_DIM;
    const i32 kv_head = (head - p.num_heads) % p.num_kv_heads;
    const bool is_query = head < p.num_heads, is_value = head >= p.num_heads + p.num_kv_heads;
    const i32 block = slot / p.block_tokens;
    const i64 cache_row = ((i64)block * p.num_kv_heads + kv_head) * p.block_tokens + slot - block * p.block_tokens;
    u16* target = is_query ? source : (is_value ? p.values : p.keys) + cache_row * HEAD_DIM;

    if (is_value) {
#pragma unroll
        for (int s = 0; s < LANE_SLOTS; s++) {
            const i32 quad = s * 32 + lane;
            if (quad < HEAD_DIM / 4) ((uint2*)target)[quad] = ((const uint2*)source)[quad];
        }
        return;
    }

    float x[LANE_SLOTS][4];  // first, second, first + step, second + step
    float squares = 0.0f;
#pragma unroll
    for (int s = 0; s < LANE_SLOTS; s++) {
        const i32 quad = s * 32 + lane;
        const Place at = place_of(p, quad);
        const bool mine = quad < HEAD_DIM / 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x[s][i] = mine ? from_half(source[(i & 1 ? at.second : at.first) + (i >> 1) * at.step]) : 0.0f;
            squares = fmaf(x[s][i], x[s][i], squares);
        }
    }
    const float* norm = is_query ? p.query_norm : p.key_norm;
    float inverse = 1.0f;
    if (norm) inverse = rsqrtf(warp_sum(squares) / HEAD_DIM + (is_query ? p.query_epsilon : p.key_epsilon));
    __syncwarp();  // queries are rotated in place: all are read before one is written
#pragma unroll
    for (int s = 0; s < LANE_SLOTS; s++) {
        const i32 quad = s * 32 + lane;
        if (quad >= HEAD_DIM / 4) continue;
        const Place at = place_of(p, quad);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float first = x[s][2 * i], second = x[s][2 * i + 1];
            const i32 offset = i * at.step;
            if (norm) {
                first *= inverse * norm[at.first + offset];
                second *= inverse * norm[at.second + offset];
            }
            if (p.cosine && at.pair >= 0) {
                const i64 angle = (i64)token * p.num_pairs + at.pair + i;
                const float cosine = p.cosine[angle], sine = p.sine[angle];
                const float rotated = first * cosine - second * sine;
                second = second * cosine + first * sine;
                first = rotated;
            }
            target[at.first + offset] = to_half(first);
            target[at.second + offset] = to_half(second);
        }
    }
}

#endif
