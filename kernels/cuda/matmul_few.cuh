// The weights of matmul_few: a warp copies the units of its tile itself, some ahead of the one that it computes with.
// (Hopper's copy engine asked for fewer instructions here and was 5-20 % slower on an H100.)
#pragma once
#include "matmul.cuh"

// acc += the products of a chunk of a tile's weights with up to 8 rows of x, the chunk of which begins at `x`.
DEVICE void multiply_chunk(float (&acc)[4], const Raw<FORMAT>& raw, const RowBase& base, u32 x) {
    const Scales<FORMAT> scales(raw, base);
    u32 b[2][4];
    load_matrices(b[0], x);
    load_matrices(b[1], x + 64);
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
    static constexpr int GROUP = FEW_GROUP<FORMAT>;
    static constexpr int STAGE_BYTES = GROUP * L::unit_bytes, PIECES = L::unit_bytes / 16;

    const u8* ahead;  // this lane's first piece of the unit that is fetched next
    int ahead_units;  // left in its tile
    int ahead_tile, tile_step, num_tiles;
    u32 ring, slot;

    DEVICE void fetch(u32 to) {
        const int lane = threadIdx.x % 32, num_units = ahead_tile < num_tiles ? ahead_units : 0;
        to += lane * 16;
#pragma unroll
        for (int unit = 0; unit < GROUP; unit++)
#pragma unroll
            for (int piece = 0; piece < PIECES; piece += 32)
                copy_if(unit < num_units && piece + lane < PIECES, to + unit * L::unit_bytes + piece * 16,
                        ahead + unit * 4 * L::unit_bytes + piece * 16);
        copy_commit();
        ahead += GROUP * 4 * L::unit_bytes;
    }
    DEVICE void begin_tile(const Params& p, const u8* matrix, int first_unit) {
        ahead = unit_address<FORMAT>(matrix, ahead_tile, first_unit * L::chunks, p.num_units) + threadIdx.x % 32 * 16;
    }

    int first_unit, num_units;

    DEVICE void advance(const Params& p, const u8* matrix, u32 to) {
        fetch(to);
        if ((ahead_units -= GROUP) <= 0) {
            ahead_tile += tile_step, ahead_units = num_units;
            begin_tile(p, matrix, first_unit);
        }
    }

   public:
    static constexpr int STAGES = 2;  // more in flight, on all processors, was slower

    DEVICE Weights(const Params& p, const u8* matrix, u32 rings, int segment, int tile, int tile_step, int num_tiles)
        : ahead_tile(tile), tile_step(tile_step), num_tiles(num_tiles), first_unit(segment_start(segment, p)),
          num_units(segment_start(segment + 1, p) - first_unit) {
        ring = slot = rings + threadIdx.x / 32 * (STAGES * STAGE_BYTES);
        ahead_units = num_units;
        begin_tile(p, matrix, first_unit);
#pragma unroll 1
        for (u32 to = ring; to < ring + STAGES * STAGE_BYTES; to += STAGE_BYTES) advance(p, matrix, to);
    }

    // acc += the warp's segment of its next tile, times x, whose rows begin at `x`.
    DEVICE void multiply(const Params& p, const u8* matrix, float (&acc)[4], const RowBase& base, u32 x) {
        x += first_unit * (L::chunks * 128);
#pragma unroll 1
        for (int left = num_units; left > 0; left -= GROUP) {
            copy_wait<STAGES - 1>();
            __syncwarp();
#pragma unroll
            for (int unit = 0; unit < GROUP; unit++) {
                if (unit >= left) break;
#pragma unroll
                for (int sub = 0; sub < L::chunks; sub++) {
                    Raw<FORMAT> raw;
                    raw.load_shared(slot + unit * L::unit_bytes, sub, threadIdx.x % 32);
                    multiply_chunk(acc, raw, base, x + (unit * L::chunks + sub) * 128);
                }
            }
            x += GROUP * L::chunks * 128;
            __syncwarp();  // all lanes have read what is overwritten now
            advance(p, matrix, slot);
            if ((slot += STAGE_BYTES) == ring + STAGES * STAGE_BYTES) slot = ring;
        }
    }
};
