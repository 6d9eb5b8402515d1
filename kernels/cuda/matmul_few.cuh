// The weights of matmul_few: each lane copies what it will read itself, a chunk at a time, many chunks ahead. (Hopper's
// copy engine asked for fewer instructions here and was 5-20 % slower on an H100.)
#pragma once
#include "matmul.cuh"

// acc += the products of a chunk of a tile's weights with up to 8 rows of x.
DEVICE void multiply_chunk(float (&acc)[4], const Raw<FORMAT>& raw, const RowBase& base, u32 x_address, int chunk) {
    const Scales<FORMAT> scales(raw, base);
    u32 b[2][4];
    load_matrices(b[0], x_address + chunk * 128);
    load_matrices(b[1], x_address + chunk * 128 + 64);
#pragma unroll
    for (int s = 0; s < 4; s++) {
        u32 a[4];
        fragment_of<FORMAT>(raw, scales, s, a);
        mma_16x8x16(acc, a, b[s >> 1][2 * (s & 1)], b[s >> 1][2 * (s & 1) + 1]);
    }
}

// One warp's segment of its tiles, one tile after the other.
class Weights {
    using L = Layout<FORMAT>;
    static constexpr int STAGES = FORMAT == F32 ? 2 : FORMAT == F16 || FORMAT == BF16 ? 4 : 8;  // chunks in flight
    static constexpr int SLOT_BYTES = Staged<FORMAT>::bytes;

    const u8* matrix;
    const u8* ahead;  // the unit of the chunk that is fetched next, and where that is
    int ahead_tile, ahead_chunk, tile_step, num_tiles, num_units;
    int first_chunk, last_chunk;
    u32 ring, slot;

    DEVICE void fetch(u32 to, int lane) {
        if (ahead_tile < num_tiles) Staged<FORMAT>::copy(to, ahead, ahead_chunk % L::chunks, lane);
        copy_commit();
        if (++ahead_chunk == last_chunk) {
            ahead_chunk = first_chunk, ahead_tile += tile_step;
            ahead = unit_address<FORMAT>(matrix, ahead_tile, ahead_chunk, num_units);
        } else if (ahead_chunk % L::chunks == 0) {
            ahead += 4 * L::unit_bytes;
        }
    }

   public:
    DEVICE Weights(const Params& p, int expert, u32 rings, int segment, int tile, int tile_step, int num_tiles)
        : matrix(p.weights + expert * p.expert_bytes), ahead_tile(tile), tile_step(tile_step), num_tiles(num_tiles),
          num_units(p.num_units), first_chunk(segment_start(segment, p)), last_chunk(segment_start(segment + 1, p)) {
        ring = slot = rings + threadIdx.x / 32 * (STAGES * SLOT_BYTES);
        ahead_chunk = first_chunk;
        ahead = unit_address<FORMAT>(matrix, tile, first_chunk, num_units);
#pragma unroll 1
        for (int i = 0; i < STAGES; i++) fetch(ring + i * SLOT_BYTES, threadIdx.x % 32);
    }

    // acc += the warp's segment of its next tile, times x.
    DEVICE void multiply(float (&acc)[4], const RowBase& base, u32 x_address, int lane) {
#pragma unroll 1
        for (int chunk = first_chunk; chunk < last_chunk; chunk++) {
            copy_wait<STAGES - 1>();
            Raw<FORMAT> raw;
            Staged<FORMAT>::load(raw, slot, lane);
            multiply_chunk(acc, raw, base, x_address, chunk);
            fetch(slot, lane);  // the lane has read what it now overwrites, and no other lane reads it
            if ((slot += SLOT_BYTES) == ring + STAGES * SLOT_BYTES) slot = ring;
        }
    }
};
