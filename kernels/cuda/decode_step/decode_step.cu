// What turns one step into the next one without the host. Both kernels are one block: what they do is small, and its
// parts depend on each other.
#include "../common/common.cuh"

constexpr int THREADS = 1024;

// How a row goes on, where that is not "with the token that was just drawn".
struct Patch {
    u64 key;
    i64 output_position;
    i32 row;
    i32 token_id;  // -1 - i: the id that draw i of the previous step gave
    i32 position;  // -1: the row is empty from now on
    i32 top_k;
    float temperature;
    float top_p;
    float min_p;
    i32 padding;
};

struct Update {
    i32 entry;  // of block_tables, seen as one dimension
    i32 block_id;
};

struct DecodeParams {
    i32* token_ids;         // [capacity]
    i32* positions;         // [capacity]
    i32* slots;             // [capacity]
    i32* context_lengths;   // [capacity]
    i32* sequence_lengths;  // [capacity]
    i32* block_tables;      // [capacity, max_blocks]
    float* temperature;     // [capacity]
    i32* top_k;             // [capacity]
    float* top_p;           // [capacity]
    float* min_p;           // [capacity]
    u64* keys;              // [capacity]
    i64* output_positions;  // [capacity]
    const i32* drawn;       // [capacity] ids that the previous step drew, -1 where its logits were not finite
    i32* num_changes;       // [4] patches, updates, 0, 0; then the patches, then the updates
    i32 num_rows;
    i32 max_blocks;
    i32 block_tokens;
    i32 padding;
};

// An id as an input: one that could not be drawn becomes 0, and the host ends the sequence when it reads of it.
DEVICE i32 usable(i32 id) { return max(id, 0); }

DEVICE i32 resolved(i32 id, const i32* drawn) { return id < 0 ? usable(drawn[-1 - id]) : id; }

// Rows that hold a sequence go on with the token they drew; then patches and table updates; then slots.
KERNEL __launch_bounds__(THREADS) step_begin_decode(const __grid_constant__ DecodeParams p) {
    wait_for_previous();
    const int thread = threadIdx.x;
    const i32 num_patches = p.num_changes[0], num_updates = p.num_changes[1];
    const Patch* patches = (const Patch*)(p.num_changes + 4);        // [num_patches]
    const Update* updates = (const Update*)(patches + num_patches);  // [num_updates]
    for (int row = thread; row < p.num_rows; row += THREADS) {
        if (p.positions[row] < 0) continue;
        p.token_ids[row] = usable(p.drawn[row]);
        p.positions[row]++;
        p.context_lengths[row]++;
        p.sequence_lengths[row]++;
        p.output_positions[row]++;
    }
    for (int i = thread; i < num_updates; i += THREADS) p.block_tables[updates[i].entry] = updates[i].block_id;
    __syncthreads();
    for (int i = thread; i < num_patches; i += THREADS) {
        const Patch patch = patches[i];
        const i32 row = patch.row;
        p.token_ids[row] = resolved(patch.token_id, p.drawn);
        p.positions[row] = patch.position;
        p.context_lengths[row] = p.sequence_lengths[row] = patch.position + 1;
        p.temperature[row] = patch.temperature;
        p.top_k[row] = patch.top_k;
        p.top_p[row] = patch.top_p;
        p.min_p[row] = patch.min_p;
        p.keys[row] = patch.key;
        p.output_positions[row] = patch.output_position;
    }
    if (thread < 2) p.num_changes[thread] = 0;
    __syncthreads();
    for (int row = thread; row < p.num_rows; row += THREADS) {
        const i32 position = p.positions[row], block = position / p.block_tokens;
        p.slots[row] = position < 0 ? -1
                                    : p.block_tables[(i64)row * p.max_blocks + block] * p.block_tokens +
                                          (position - block * p.block_tokens);
    }
}

struct ResolveParams {
    i32* token_ids;    // [num_tokens]
    const i32* drawn;  // [capacity]
    i32 num_tokens;
    i32 padding;
};

// Token ids that are still on the device: -1 - i becomes the id that draw i of the previous step gave.
KERNEL __launch_bounds__(THREADS) step_resolve(const __grid_constant__ ResolveParams p) {
    wait_for_previous();
    for (int i = threadIdx.x; i < p.num_tokens; i += THREADS) p.token_ids[i] = resolved(p.token_ids[i], p.drawn);
}

struct CopyParams {
    const u32* source;  // device memory
    u32* target;        // page-locked host memory
    i32 num_words;
    i32 padding;
};

// What the host reads after a step. A copy engine would take several times as long to take over and to hand back.
KERNEL __launch_bounds__(THREADS) step_copy_to_host(const __grid_constant__ CopyParams p) {
    wait_for_previous();
    for (int i = threadIdx.x; i < p.num_words; i += THREADS) p.target[i] = p.source[i];
}
