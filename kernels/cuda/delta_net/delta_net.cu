// Gated delta nets, in three kernels. The state of a head is advanced token by token, in registers: a token's bits are
// the same whatever step it comes in, as one of a prompt or as the only one.
//   delta_net_inputs  convolution and SiLU, norms of queries and keys, gates: a thread has four channels of a token,
//                     in delta_net_inputs_many of several
//   delta_net_rule    the delta rule, and the inputs that the convolution keeps: a block has 32 columns of a head's
//                     state, and goes through the step's tokens of one sequence
//   delta_net_norm    norms of the answers, gated by SiLU(z): a warp has a head of a token
#include "../convolution/convolution.cuh"

struct DeltaNetSizes {
    int num_tokens;
    int num_key_heads, num_value_heads;
    int value_dim;  // a multiple of 16; the other side of a state is KEY_DIM
    int grouped;    // value heads of one head of queries and keys are neighbours; else they are num_key_heads apart
    int stride;     // of a row of `projected`
};

struct DeltaNetParams {
    const u16* projected;  // [num_tokens, stride] channels (queries, keys, values), z, beta, alpha
    ConvolutionParams convolution;
    float* matrices;         // [num_slots, num_value_heads, value_dim, KEY_DIM]
    const float* decay;      // [num_value_heads]
    const float* time_bias;  // [num_value_heads]
    float* queries_keys;     // [num_tokens, 2, num_key_heads, KEY_DIM]
    float* values;           // [num_tokens, num_value_heads, value_dim]
    float2* gates;           // [num_tokens, num_value_heads] by what a state is multiplied, and the rate of the change
    float* products;         // [num_tokens, num_key_heads] of the query and the key of a head
    float* answers;          // [num_tokens, num_value_heads, value_dim]
    const float* norm;       // [value_dim]
    u16* out;                // [num_tokens, num_value_heads, value_dim]
    float epsilon;
    float inverse_value_dim;
    DeltaNetSizes sizes;
};

constexpr float L2_EPSILON = 1e-6f;

struct ProjectedInput {
    const u16* projected;
    int stride;

    DEVICE float4 operator()(i32 token, int channel) const {
        return load_halves(projected + (i64)token * stride + channel);
    }
};

DEVICE ProjectedInput input_of(const DeltaNetParams& p) { return {p.projected, p.sizes.stride}; }

DEVICE float silu(float x) { return x / (1.0f + __expf(-x)); }
DEVICE float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }
DEVICE float dot(float4 a, float4 b) { return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, a.x * b.x))); }
DEVICE float4 scaled(float4 v, float factor) { return {v.x * factor, v.y * factor, v.z * factor, v.w * factor}; }

DEVICE float4 mixed(const DeltaNetParams& p, i32 token, int channel) {
    const float4 sum = convolve(p.convolution, token, channel, input_of(p));
    return {silu(sum.x), silu(sum.y), silu(sum.z), silu(sum.w)};
}

// What a thread of delta_net_inputs* has of each token: four channels of a query and the same of its key, or of values,
// or the gates of a head.
struct InputThread {
    int key_width, value_width, quad, value_quad, head;
    bool is_key, is_value;

    DEVICE explicit InputThread(const DeltaNetSizes& sizes)
        : key_width(sizes.num_key_heads * KEY_DIM),
          value_width(sizes.num_value_heads * sizes.value_dim),
          quad(blockIdx.y * THREADS + threadIdx.x),
          value_quad(quad - key_width / 4),
          head(value_quad - value_width / 4),
          is_key(value_quad < 0),
          is_value(!is_key && head < 0) {}
    DEVICE int channel() const { return is_key ? 4 * quad : 2 * key_width + 4 * value_quad; }
    DEVICE int key_channel() const { return key_width + 4 * quad; }

    // Of channels that are mixed already. All threads of a warp call it.
    DEVICE void store(const DeltaNetParams& p, i32 token, float4 first, float4 key) const {
        float squares = dot(first, first), key_squares = dot(key, key), product = dot(first, key);
#pragma unroll
        for (int distance = KEY_DIM / 8; distance; distance >>= 1) {
            squares += __shfl_xor_sync(ALL_LANES, squares, distance);
            key_squares += __shfl_xor_sync(ALL_LANES, key_squares, distance);
            product += __shfl_xor_sync(ALL_LANES, product, distance);
        }
        if (is_key) {
            const float factor = rsqrtf(squares + L2_EPSILON) * rsqrtf((float)KEY_DIM);
            const float key_factor = rsqrtf(key_squares + L2_EPSILON);
            float* row = p.queries_keys + (i64)token * 2 * key_width + 4 * quad;
            *(float4*)row = scaled(first, factor);
            *(float4*)(row + key_width) = scaled(key, key_factor);
            if (quad % (KEY_DIM / 4) == 0)
                p.products[(i64)token * p.sizes.num_key_heads + quad / (KEY_DIM / 4)] = product * factor * key_factor;
        } else if (is_value) {
            *(float4*)(p.values + (i64)token * value_width + 4 * value_quad) = first;
        } else if (head < p.sizes.num_value_heads) {
            const u16* gates = p.projected + (i64)token * p.sizes.stride + p.convolution.channels + value_width + head;
            const float beta = from_half(gates[0]), alpha = from_half(gates[p.sizes.num_value_heads]);
            const float kept = expf(p.decay[head] * softplus(alpha + p.time_bias[head]));
            p.gates[(i64)token * p.sizes.num_value_heads + head] = {kept, 1.0f / (1.0f + __expf(-beta))};
        }
    }
    DEVICE void mix(const DeltaNetParams& p, i32 token) const {
        if (p.convolution.positions[token] < 0) return;
        float4 first = {0.0f, 0.0f, 0.0f, 0.0f}, key = first;
        if (is_key || is_value) first = mixed(p, token, channel());
        if (is_key) key = mixed(p, token, key_channel());
        store(p, token, first, key);
    }
};

KERNEL __launch_bounds__(THREADS) delta_net_inputs(const __grid_constant__ DeltaNetParams p) {
    wait_for_previous();
    InputThread(p.sizes).mix(p, blockIdx.x);
}

// Four channels of INPUT_TOKENS tokens one after the other and of those before them, loaded at once.
constexpr int WINDOW_TAPS = 4;
struct Window {
    uint2 inputs[INPUT_TOKENS + WINDOW_TAPS - 1];
    float4 taps[WINDOW_TAPS];

    DEVICE void load(const DeltaNetParams& p, i32 first_token, int channel) {
        const u16* from = p.projected + (i64)(first_token - WINDOW_TAPS + 1) * p.sizes.stride + channel;
#pragma unroll
        for (int i = 0; i < INPUT_TOKENS + WINDOW_TAPS - 1; i++)
            inputs[i] = *(const uint2*)(from + (i64)i * p.sizes.stride);
#pragma unroll
        for (int tap = 0; tap < WINDOW_TAPS; tap++)
            taps[tap] = *(const float4*)(p.convolution.taps + (i64)tap * p.convolution.channels + channel);
    }
    DEVICE float4 mixed(int token) const {
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int tap = 0; tap < WINDOW_TAPS; tap++) {
            const uint2 x = inputs[token + tap];
            const float4 w = taps[tap];
            sum.x = fmaf(low_half(x.x), w.x, sum.x), sum.y = fmaf(high_half(x.x), w.y, sum.y);
            sum.z = fmaf(low_half(x.y), w.z, sum.z), sum.w = fmaf(high_half(x.y), w.w, sum.w);
        }
        return {silu(sum.x), silu(sum.y), silu(sum.z), silu(sum.w)};
    }
};

// A block has INPUT_TOKENS tokens. Those of one sequence, whose inputs are all of this step, wait for memory once.
KERNEL __launch_bounds__(THREADS) delta_net_inputs_many(const __grid_constant__ DeltaNetParams p) {
    wait_for_previous();
    const ConvolutionParams& c = p.convolution;
    const InputThread thread(p.sizes);
    const i32 first = blockIdx.x * INPUT_TOKENS, last = min(first + INPUT_TOKENS, p.sizes.num_tokens) - 1;
    const i32 sequence = c.sequence_rows[first];
    if (last - first < INPUT_TOKENS - 1 || c.num_taps != WINDOW_TAPS || c.sequence_rows[last] != sequence ||
        first - c.query_starts[sequence] < WINDOW_TAPS - 1 || c.positions[first] < 0 || c.positions[last] < 0) {
        for (i32 token = first; token <= last; token++) thread.mix(p, token);
        return;
    }
    Window window, keys;
    if (thread.is_key || thread.is_value) window.load(p, first, thread.channel());
    if (thread.is_key) keys.load(p, first, thread.key_channel());
#pragma unroll
    for (int token = 0; token < INPUT_TOKENS; token++) {
        float4 values = {0.0f, 0.0f, 0.0f, 0.0f}, key = values;
        if (thread.is_key || thread.is_value) values = window.mixed(token);
        if (thread.is_key) key = keys.mixed(token);
        thread.store(p, first + token, values, key);
    }
}

// ---- the delta rule: S = kept * S, then S += k (rate * (v - S^T k))^T, and the answer is S^T q. With products of the
// state as it was, kept * S^T q + (q . k) * change is the same, and both can be computed at once.

constexpr int PARTS = 4;             // of a column, each in a lane of its own
constexpr int COLUMNS = 32;          // of a block
constexpr int QUADS = KEY_DIM / 16;  // of a part, PARTS quads apart
static_assert(THREADS == PARTS * COLUMNS, "a thread has a part of a column");

struct Tokens {  // some of a sequence, in shared memory
    float queries[STAGE_TOKENS][KEY_DIM];
    float keys[STAGE_TOKENS][KEY_DIM];
    float values[STAGE_TOKENS][COLUMNS];
    float2 gates[STAGE_TOKENS];
    float products[STAGE_TOKENS];
};

struct Head {  // what a block works at
    i32 sequence;
    int head, key_head, first_column;

    DEVICE explicit Head(const DeltaNetSizes& sizes) {
        const int groups = (sizes.value_dim + COLUMNS - 1) / COLUMNS;
        const i32 row = blockIdx.x / groups;
        first_column = (blockIdx.x - row * groups) * COLUMNS;
        sequence = row / sizes.num_value_heads, head = row - sequence * sizes.num_value_heads;
        key_head = sizes.grouped ? head / (sizes.num_value_heads / sizes.num_key_heads) : head % sizes.num_key_heads;
    }
};

DEVICE void copy_tokens(Tokens& to, const DeltaNetParams& p, const Head& at, i32 first, int count) {
    constexpr int chunks = KEY_DIM / 4;
    const DeltaNetSizes& sizes = p.sizes;
    for (int i = threadIdx.x; i < count * chunks; i += THREADS) {
        const int token = i / chunks, chunk = i - token * chunks;
        const float* from =
            p.queries_keys + ((i64)(first + token) * 2 * sizes.num_key_heads + at.key_head) * KEY_DIM + 4 * chunk;
        copy_words<16>(shared_address(&to.queries[token][4 * chunk]), from);
        copy_words<16>(shared_address(&to.keys[token][4 * chunk]), from + sizes.num_key_heads * KEY_DIM);
    }
    for (int i = threadIdx.x; i < count * COLUMNS / 4; i += THREADS) {
        const int token = i / (COLUMNS / 4), column = 4 * (i % (COLUMNS / 4));
        const i64 row = (i64)(first + token) * sizes.num_value_heads + at.head;
        if (at.first_column + column < sizes.value_dim)
            copy_words<16>(shared_address(&to.values[token][column]),
                           p.values + row * sizes.value_dim + at.first_column + column);
    }
    if (threadIdx.x < count) {
        const i64 token = first + threadIdx.x;
        copy_words<8>(shared_address(&to.gates[threadIdx.x]), p.gates + token * sizes.num_value_heads + at.head);
        copy_words<4>(shared_address(&to.products[threadIdx.x]),
                      p.products + token * sizes.num_key_heads + at.key_head);
    }
}

DEVICE float sum_of(float4 v) { return (v.x + v.y) + (v.z + v.w); }

DEVICE float4 add_products(float4 sums, float4 a, float4 b) {
    return {fmaf(a.x, b.x, sums.x), fmaf(a.y, b.y, sums.y), fmaf(a.z, b.z, sums.z), fmaf(a.w, b.w, sums.w)};
}

// A part of a column of a state, which a thread has. The lanes with the parts of a column are APART: where they are
// neighbours they ask memory for what lies together; otherwise neighbours read the same numbers of a key.
template <int APART>
struct ColumnPart {
    static constexpr int NEIGHBOURS = 32 / PARTS;  // columns of a warp

    float4 numbers[QUADS];
    int part, column;

    DEVICE ColumnPart()
        : part(threadIdx.x % 32 / APART % PARTS),
          column(threadIdx.x / 32 * NEIGHBOURS + (APART == 1 ? threadIdx.x % 32 / PARTS : threadIdx.x % NEIGHBOURS)) {
        static_assert(APART == 1 || APART == NEIGHBOURS, "see `column`");
    }
    // From or to rows [columns, KEY_DIM], of which there are `num_columns`; others are zeros.
    DEVICE void load(const float* rows, int num_columns) {
        const float4* from = (const float4*)(rows + column * KEY_DIM + 4 * part);
#pragma unroll
        for (int q = 0; q < QUADS; q++)
            numbers[q] = column < num_columns ? from[PARTS * q] : float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
    DEVICE void store(float* rows, int num_columns) const {
        float4* to = (float4*)(rows + column * KEY_DIM + 4 * part);
        if (column < num_columns)
#pragma unroll
            for (int q = 0; q < QUADS; q++) to[PARTS * q] = numbers[q];
    }
    // Advances it by token `token` of `tokens`, and gives the column's answer.
    DEVICE float advance(const Tokens& tokens, int token) {
        float4 key[QUADS], known = {0.0f, 0.0f, 0.0f, 0.0f}, asked = known;
#pragma unroll
        for (int q = 0; q < QUADS; q++) {
            const int from = 4 * (PARTS * q + part);
            key[q] = *(const float4*)&tokens.keys[token][from];
            known = add_products(known, key[q], numbers[q]);
            asked = add_products(asked, *(const float4*)&tokens.queries[token][from], numbers[q]);
        }
        const float2 gate = tokens.gates[token];
        const float kept = gate.x, was = over_parts(sum_of(known)), answer = over_parts(sum_of(asked));
        const float change = fmaf(-kept, was, tokens.values[token][column]) * gate.y;
#pragma unroll
        for (int q = 0; q < QUADS; q++)
            numbers[q] = add_products(scaled(numbers[q], kept), key[q], {change, change, change, change});
        return fmaf(tokens.products[token], change, kept * answer);
    }

   private:
    DEVICE static float over_parts(float value) {  // the same bits in every lane, and whatever APART is
        value += __shfl_xor_sync(ALL_LANES, value, APART);
        return value + __shfl_xor_sync(ALL_LANES, value, 2 * APART);
    }
};

template <typename State>
DEVICE void advance_states(const DeltaNetParams& p) {
    __shared__ __align__(16) Tokens stages[2];
    const DeltaNetSizes& sizes = p.sizes;
    const Head at(sizes);
    const int num_columns = sizes.value_dim - at.first_column;
    const i32 slot = p.convolution.states.slots[at.sequence], source = p.convolution.states.sources[at.sequence];
    const i64 slot_size = (i64)sizes.num_value_heads * sizes.value_dim * KEY_DIM;
    const i64 own = ((i64)at.head * sizes.value_dim + at.first_column) * KEY_DIM;
    State state;
    // The kernel before does not write states: they are on their way while it works.
    state.load(p.matrices + max(source, 0) * slot_size + own, source >= 0 && slot >= 0 ? num_columns : 0);
    wait_for_previous();
    if (slot < 0) return;
    const i32 start = p.convolution.query_starts[at.sequence], end = p.convolution.query_starts[at.sequence + 1];
    copy_tokens(stages[0], p, at, start, min(end - start, STAGE_TOKENS));
    copy_commit();
    for (i32 first = start, stage = 0; first < end; first += STAGE_TOKENS, stage ^= 1) {
        const i32 next = first + STAGE_TOKENS;
        if (next < end) copy_tokens(stages[stage ^ 1], p, at, next, min(end - next, STAGE_TOKENS));
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        const int count = min(end - first, STAGE_TOKENS);
        float* answers = p.answers + ((i64)first * sizes.num_value_heads + at.head) * sizes.value_dim + at.first_column;
#pragma unroll 1
        for (int token = 0; token < count; token++) {
            const float answer = state.advance(stages[stage], token);
            if (state.part == 0 && state.column < num_columns)
                answers[(i64)token * sizes.num_value_heads * sizes.value_dim + state.column] = answer;
        }
        __syncthreads();
    }
    state.store(p.matrices + slot * slot_size + own, num_columns);
    // The blocks of a sequence share its channels out.
    const int blocks = gridDim.x / p.convolution.num_sequences, block = blockIdx.x - at.sequence * blocks;
    for (int quad = block * THREADS + threadIdx.x; 4 * quad < p.convolution.channels; quad += blocks * THREADS)
        keep_inputs(p.convolution, at.sequence, 4 * quad, input_of(p));
}

KERNEL __launch_bounds__(THREADS) delta_net_rule(const __grid_constant__ DeltaNetParams p) {
    advance_states<ColumnPart<32 / PARTS>>(p);
}
// This is for steps of a token of many sequences each, which do little but read and write states.
KERNEL __launch_bounds__(THREADS) delta_net_rule_step(const __grid_constant__ DeltaNetParams p) {
    advance_states<ColumnPart<1>>(p);
}

KERNEL __launch_bounds__(THREADS) delta_net_norm(const __grid_constant__ DeltaNetParams p) {
    wait_for_previous();
    const DeltaNetSizes& sizes = p.sizes;
    const i64 row = (i64)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const i32 token = row / sizes.num_value_heads, head = row - (i64)token * sizes.num_value_heads;
    if (token >= sizes.num_tokens) return;
    const int first = threadIdx.x % 32 * 4;
    const float* answers = p.answers + row * sizes.value_dim;
    uint2* out = (uint2*)(p.out + row * sizes.value_dim);
    if (p.convolution.positions[token] < 0) {
        for (int column = first; column < sizes.value_dim; column += 128) out[column / 4] = {0, 0};
        return;
    }
    float squares = 0.0f;
    for (int column = first; column < sizes.value_dim; column += 128) {
        const float4 v = *(const float4*)(answers + column);
        squares += dot(v, v);
    }
    const float factor = rsqrtf(fmaf(warp_sum(squares), p.inverse_value_dim, p.epsilon));
    const u16* z = p.projected + (i64)token * sizes.stride + p.convolution.channels + head * sizes.value_dim;
    for (int column = first; column < sizes.value_dim; column += 128) {
        const float4 v = scaled(*(const float4*)(answers + column), factor), w = *(const float4*)(p.norm + column);
        const float4 gate = load_halves(z + column);
        out[column / 4] = {pack_half2(v.x * w.x * silu(gate.x), v.y * w.y * silu(gate.y)),
                           pack_half2(v.z * w.z * silu(gate.z), v.w * w.w * silu(gate.w))};
    }
}
