// How a row goes on with the token that it drew.
#pragma once
#include "../common/common.cuh"

// An id as an input: one that could not be drawn becomes 0, and the host ends the sequence when it reads of it.
DEVICE i32 usable(i32 id) { return max(id, 0); }

// The KV slot of a position of the sequence with this block table.
DEVICE i32 kv_slot(const i32* block_table, i32 position, i32 block_tokens) {
    const i32 block = position / block_tokens;
    return block_table[block] * block_tokens + (position - block * block_tokens);
}
