// What turns one step into the next one, or into that of some of its tokens, without the host. All kernels but those
// that select are one block: what they do is small, and its parts depend on each other.
#include "decode_rows.cuh"

// How many updates there are: the row updates come after it, then the block updates.
struct UpdateCounts {
    i32 num_rows;
    i32 num_blocks;
};

// How a row goes on, where that is not "with the token that was just drawn". Its sampling parameters come after it.
struct RowUpdate {
    i64 output_position;
    i32 row;
    i32 token;     // an id, or what only the device knows, see `resolved`
    i32 position;  // EMPTY_ROW of kernels/decode_rows.py: the row is empty from now on
    i32 state_slot;
    i32 state_source;
};

constexpr int ROW_UPDATE_WORDS = sizeof(RowUpdate) / sizeof(u64);

struct BlockUpdate {
    i32 entry;  // of block_tables, seen as one dimension
    i32 block_id;
};

struct RowStatesParams {
    i32* slots;    // [capacity]; null: the model has no recurrent layers
    i32* sources;  // [capacity]
};

struct BeginParams {
    i32* token_ids;         // [capacity]
    i32* positions;         // [capacity]
    i32* slots;             // [capacity] KV slots
    i32* context_lengths;   // [capacity]
    i32* sequence_lengths;  // [capacity]
    i32* block_tables;      // [capacity, max_blocks]
    i64* output_positions;  // [capacity]
    u64* sampling_rows;     // [capacity, sampling_words]
    const i32* drawn;       // [capacity] ids that the previous step drew, -1 where its logits were not finite
    UpdateCounts* updates;  // [1] and the updates
    RowStatesParams states;
    i32 num_rows;
    i32 max_blocks;
    i32 block_tokens;
    i32 sampling_words;
};

// A negative token stands for an id that a draw of the previous step gave: this is the number of that draw. See
// `encode_draw` of kernels/batch.py.
DEVICE i32 decode_draw(i32 token) { return -1 - token; }

// The id of a token, or of the draw that it stands for.
DEVICE i32 resolved(i32 token, const i32* drawn) { return token < 0 ? usable(drawn[decode_draw(token)]) : token; }

// What a row goes on from, loaded at once: loads that come after stores wait for them, and each takes as long as device
// memory.
struct RowState {
    i32 position, drawn, context_length, sequence_length, state_slot = 0;
    i64 output_position;

    DEVICE RowState(const BeginParams& p, int row)
        : position(p.positions[row]),
          drawn(p.drawn[row]),
          context_length(p.context_lengths[row]),
          sequence_length(p.sequence_lengths[row]),
          output_position(p.output_positions[row]) {
        if (p.states.slots) state_slot = p.states.slots[row];
    }
    // A row that holds a sequence goes on with the token it drew and with its own state.
    DEVICE void advance(const BeginParams& p, int row) const {
        if (position < 0) return;
        p.token_ids[row] = usable(drawn);
        p.positions[row] = position + 1;
        p.context_lengths[row] = context_length + 1;
        p.sequence_lengths[row] = sequence_length + 1;
        p.output_positions[row] = output_position + 1;
        if (p.states.slots) p.states.sources[row] = state_slot;
    }
};

// The KV slot of a position, -1 of a row without a sequence.
DEVICE i32 slot_of(const BeginParams& p, int row, i32 position) {
    return position < 0 ? -1 : kv_slot(p.block_tables + (i64)row * p.max_blocks, position, p.block_tokens);
}

// Rows go on; then row and block updates; then KV slots.
KERNEL __launch_bounds__(THREADS) decode_step_begin(const __grid_constant__ BeginParams p) {
    wait_for_previous();
    const int thread = threadIdx.x;
    const UpdateCounts counts = *p.updates;
    const RowState first(p, min(thread, p.num_rows - 1));  // beside the counts: few steps have more rows than threads
    if (counts.num_rows == 0 && counts.num_blocks == 0) {
        for (int row = thread; row < p.num_rows; row += THREADS) {
            const RowState state = row == thread ? first : RowState(p, row);
            const i32 slot = slot_of(p, row, state.position < 0 ? -1 : state.position + 1);
            state.advance(p, row);
            p.slots[row] = slot;
        }
        return;
    }
    const int row_update_words = ROW_UPDATE_WORDS + p.sampling_words;
    const u64* row_updates = (const u64*)(p.updates + 1);  // [counts.num_rows, row_update_words]
    const BlockUpdate* block_updates = (const BlockUpdate*)(row_updates + counts.num_rows * row_update_words);
    for (int row = thread; row < p.num_rows; row += THREADS) (row == thread ? first : RowState(p, row)).advance(p, row);
    for (int i = thread; i < counts.num_blocks; i += THREADS)
        p.block_tables[block_updates[i].entry] = block_updates[i].block_id;
    for (int i = thread; i < counts.num_rows * p.sampling_words; i += THREADS) {
        const int word = i % p.sampling_words;
        const u64* update = row_updates + i / p.sampling_words * row_update_words;
        p.sampling_rows[((const RowUpdate*)update)->row * p.sampling_words + word] = update[ROW_UPDATE_WORDS + word];
    }
    __syncthreads();
    for (int i = thread; i < counts.num_rows; i += THREADS) {
        const RowUpdate update = *(const RowUpdate*)(row_updates + i * row_update_words);
        p.token_ids[update.row] = resolved(update.token, p.drawn);
        p.positions[update.row] = update.position;
        p.context_lengths[update.row] = p.sequence_lengths[update.row] = update.position + 1;
        p.output_positions[update.row] = update.output_position;
        if (p.states.slots)
            p.states.slots[update.row] = update.state_slot, p.states.sources[update.row] = update.state_source;
    }
    if (thread == 0) *p.updates = {0, 0};
    __syncthreads();
    for (int row = thread; row < p.num_rows; row += THREADS) p.slots[row] = slot_of(p, row, p.positions[row]);
}

struct ResolveParams {
    i32* token_ids;    // [num_tokens]
    const i32* drawn;  // [capacity]
    i32 num_tokens;
};

// Token ids that are still on the device become known: see `resolved`.
KERNEL __launch_bounds__(THREADS) decode_step_resolve(const __grid_constant__ ResolveParams p) {
    wait_for_previous();
    for (int i = threadIdx.x; i < p.num_tokens; i += THREADS) p.token_ids[i] = resolved(p.token_ids[i], p.drawn);
}

struct SelectStepParams {
    const i32* rows;              // [num_rows] tokens of the step
    const i32* token_ids;         // [num_tokens]
    const i32* positions;         // [num_tokens], -1: padding
    const i32* slots;             // [num_tokens] KV slots
    const i32* sequence_rows;     // [num_tokens]
    const i32* sequence_lengths;  // [num_sequences]
    const i32* block_tables;      // [num_sequences, max_blocks]
    i32* selected;                // [7 * num_rows + 1]: see `kernels.ops.decode_step.select_step`
    i32* selected_tables;         // [num_rows, max_blocks]
    i32 num_rows;
    i32 max_blocks;
};

// Tokens of a step become one of sequences of a token each, a block for each token: ids, positions, KV slots, rows of
// sequences, context lengths, sequence lengths, and where the tokens of each begin.
KERNEL __launch_bounds__(SELECT_THREADS) decode_step_select(const __grid_constant__ SelectStepParams p) {
    wait_for_previous();
    const i32 row = blockIdx.x, token = p.rows[row], sequence = p.sequence_rows[token];
    if (threadIdx.x == 0) {
        const i32 values[] = {p.token_ids[token],
                              p.positions[token],
                              p.slots[token],
                              row,
                              p.positions[token] + 1,
                              p.sequence_lengths[sequence],
                              row};
#pragma unroll
        for (int array = 0; array < 7; array++) p.selected[array * p.num_rows + row] = values[array];
        if (row == p.num_rows - 1) p.selected[7 * p.num_rows] = p.num_rows;
    }
    const i32* table = p.block_tables + (i64)sequence * p.max_blocks;
    for (int i = threadIdx.x; i < p.max_blocks; i += SELECT_THREADS)
        p.selected_tables[(i64)row * p.max_blocks + i] = table[i];
}

struct SelectRowsParams {
    const uint4* x;   // rows of `row_words`
    const i32* rows;  // [num_rows] rows of x
    uint4* out;       // [num_rows, num_words]
    i32 row_words;    // of 16 bytes
    i32 num_words;    // of each row that are copied, from its beginning
};

// The beginnings of some rows of an array, a block for each.
KERNEL __launch_bounds__(SELECT_THREADS) decode_step_select_rows(const __grid_constant__ SelectRowsParams p) {
    wait_for_previous();
    const uint4* row = p.x + (i64)p.rows[blockIdx.x] * p.row_words;
    for (int i = threadIdx.x; i < p.num_words; i += SELECT_THREADS) p.out[(i64)blockIdx.x * p.num_words + i] = row[i];
}

struct CopyParams {
    const u32* source;  // device memory
    u32* target;        // page-locked host memory
    i32 num_words;
};

// What the host reads after a step. A copy engine would take several times as long to begin and to signal its end.
KERNEL __launch_bounds__(THREADS) decode_step_copy_to_host(const __grid_constant__ CopyParams p) {
    wait_for_previous();
    for (int i = threadIdx.x; i < p.num_words; i += THREADS) p.target[i] = p.source[i];
}
