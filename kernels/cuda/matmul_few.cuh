// The weights of matmul_few on Hopper: each warp's share comes by the copy engine, a unit of k at a time.
#pragma once
#include "bulk.cuh"

// One warp's segment of its tiles, one tile after the other.
class Weights {
    using L = Layout<FORMAT>;
    static constexpr int UNITS = L::is_k ? 3 : FORMAT == F32 ? 2 : FORMAT == F16 || FORMAT == BF16 ? 4 : 8;  // in flight
    static constexpr int WARP_BYTES = UNITS * (L::unit_bytes + 16);  // units, then their barriers

    const u8* matrix;
    const u8* ahead;  // the unit that is fetched next, and where it is
    int ahead_tile, ahead_unit, tile_step, num_tiles, num_units;
    int first_chunk, last_chunk, first_unit, last_unit;
    u32 ring, barriers;
    RingPlace place;

    DEVICE void fetch(int stage, int lane) {
        if (lane == 0 && ahead_tile < num_tiles) {
            barrier_arrive_expecting(barriers + 8 * stage, L::unit_bytes);
            copy_bulk(ring + stage * L::unit_bytes, ahead, L::unit_bytes, barriers + 8 * stage);
        }
        ahead += 4 * L::unit_bytes;
        if (++ahead_unit == last_unit) {
            ahead_unit = first_unit, ahead_tile += tile_step;
            ahead = unit_address<FORMAT>(matrix, ahead_tile, ahead_unit * L::chunks, num_units);
        }
    }

   public:
    DEVICE Weights(const Params& p, int expert, u32 rings, int segment, int tile, int tile_step, int num_tiles)
        : matrix(p.weights + expert * p.expert_bytes), ahead_tile(tile), tile_step(tile_step), num_tiles(num_tiles),
          num_units(p.num_units), first_chunk(segment_start(segment, p)), last_chunk(segment_start(segment + 1, p)) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        ring = rings + warp * WARP_BYTES, barriers = ring + UNITS * L::unit_bytes;
        first_unit = first_chunk / L::chunks, last_unit = (last_chunk + L::chunks - 1) / L::chunks;
        ahead_unit = first_unit;
        ahead = unit_address<FORMAT>(matrix, tile, first_chunk, num_units);
        if (lane == 0) {
            for (int i = 0; i < UNITS; i++) barrier_init(barriers + 8 * i, 1);
            publish_barriers();
        }
        __syncwarp();
#pragma unroll 1
        for (int i = 0; i < UNITS; i++) fetch(i, lane);
    }

    // acc += the warp's segment of its next tile, times x.
    DEVICE void multiply(float (&acc)[4], const RowBase& base, u32 x_address, int lane) {
        int chunk = first_chunk;
#pragma unroll 1
        for (int unit = first_unit; unit < last_unit; unit++) {
            const u32 slot = ring + place.stage * L::unit_bytes;
            const int end = min(last_chunk, (unit + 1) * L::chunks);
            barrier_wait(barriers + 8 * place.stage, place.phase);
#pragma unroll 1
            for (; chunk < end; chunk++) {
                Raw<FORMAT> raw;
                raw.load_shared(slot, chunk % L::chunks, lane);
                multiply_chunk(acc, raw, base, x_address, chunk);
            }
            __syncwarp();  // all lanes have read the unit
            fetch(place.stage, lane);
            place.advance(UNITS);
        }
    }
};
