// Products of few tokens: which tiles a warp has, and their weights. It copies the units of its tile itself, some ahead
// of the one that it computes with. (Hopper's copy engine took fewer instructions here and was 5-20 % slower on an
// H100.)
#pragma once
#include "matmul.cuh"

extern __shared__ __align__(16) u8 shared[];

// Until the kernel ahead is done, if x is its work.
DEVICE void wait_for_x(const Params& p) {
    if (p.beside) {
        start_next();
        acquire();
    } else {
        wait_for_previous();
    }
}

// Where a warp of a block is, of those that share its tiles: the warps of a tile lie together, one for each segment.
struct Place {
    int local_tile, segment;
    int block_tile, tile;  // the block's first, and the warp's; none if it is but `num_tiles`
    int tile_step, num_tiles;

    DEVICE explicit Place(const Params& p) : tile_step(gridDim.x * p.tiles_at_once), num_tiles((p.num_rows + 15) / 16) {
        const int warp = threadIdx.x / 32;
        local_tile = warp * p.segment_reciprocal >> RECIPROCAL_BITS;
        segment = warp - local_tile * p.num_segments;
        block_tile = blockIdx.x * p.tiles_at_once;
        tile = local_tile < p.tiles_at_once ? block_tile + local_tile : num_tiles;
    }
};

// From one warp to the one that adds its tile up.
DEVICE void wait_for_segments(const Params& p) {
    if (p.num_segments > 1)
        __syncthreads();
    else
        __syncwarp();
}

// A chunk of a tile as the tensor core's A operands, for its four steps of 16 columns.
struct Fragments {
    u32 a[4][4];

    DEVICE void load(u32 unit, int sub, const RowBase& base) {
        Raw<FORMAT> raw;
        raw.load_shared(unit, sub, threadIdx.x % 32);
        const Scales<FORMAT> scales(raw, base);
#pragma unroll
        for (int s = 0; s < 4; s++) fragment_of<FORMAT>(raw, scales, s, a[s]);
    }
    // acc += their products with up to 8 rows of x, the chunk of which begins at `x`.
    DEVICE void multiply(float (&acc)[4], u32 x) const {
        u32 b[2][4];
        load_matrices(b[0], x);
        load_matrices(b[1], x + 64);
#pragma unroll
        for (int s = 0; s < 4; s++) mma_16x8x16(acc, a[s], b[s >> 1][2 * (s & 1)], b[s >> 1][2 * (s & 1) + 1]);
    }
};

// One warp's segment of its tiles, one tile after the other.
class Weights {
    using L = Layout<FORMAT>;
    static constexpr int GROUP = FEW_GROUP<FORMAT>;
    static constexpr int STAGE_BYTES = GROUP * L::unit_bytes, PIECES = L::unit_bytes / 16;
    static constexpr int READY = GROUP * L::chunks < READY_CHUNKS ? GROUP * L::chunks : READY_CHUNKS;
    static constexpr int STAGES = 2;  // more in flight, on all processors, was slower

    const u8* ahead;  // this lane's first piece of the unit that is fetched next
    int ahead_units;  // left in its tile
    int ahead_tile, tile_step, num_tiles;
    int first_unit, num_units;
    u32 ring, slot;
    Fragments ready[READY];  // the first tile's first chunks
    int num_ready = 0;

    DEVICE void fetch(u32 to) {
        const int lane = threadIdx.x % 32;
        to += lane * 16;
#pragma unroll
        for (int unit = 0; unit < GROUP; unit++)
#pragma unroll
            for (int piece = 0; piece < PIECES; piece += 32)
                copy_if(unit < ahead_units && piece + lane < PIECES, to + unit * L::unit_bytes + piece * 16,
                        ahead + unit * 4 * L::unit_bytes + piece * 16);
        ahead += GROUP * 4 * L::unit_bytes;
    }
    DEVICE void begin_tile(const Params& p, const u8* matrix) {
        ahead = unit_address<FORMAT>(matrix, ahead_tile, first_unit * L::chunks, p.num_units) + threadIdx.x % 32 * 16;
    }
    DEVICE void advance(const Params& p, const u8* matrix, u32 to) {
        if (ahead_tile < num_tiles) {
            fetch(to);
            if ((ahead_units -= GROUP) <= 0) {
                ahead_tile += tile_step, ahead_units = num_units;
                begin_tile(p, matrix);
            }
        }
        copy_commit();
    }
    DEVICE void wait_for_group() const {
        copy_wait<STAGES - 1>();
        __syncwarp();
    }
    // All lanes have read what lies in the slot: what comes next may take its place.
    DEVICE void release(const Params& p, const u8* matrix) {
        __syncwarp();
        advance(p, matrix, slot);
        if ((slot += STAGE_BYTES) == ring + STAGES * STAGE_BYTES) slot = ring;
    }
    DEVICE bool is_group_ready() const { return num_ready && num_ready == min(GROUP, num_units) * L::chunks; }

   public:
    DEVICE Weights(const Params& p, const u8* matrix, u32 rings, int segment, int tile, int tile_step, int num_tiles)
        : ahead_tile(tile),
          tile_step(tile_step),
          num_tiles(num_tiles),
          first_unit(segment_start(segment, p)),
          num_units(segment_start(segment + 1, p) - first_unit) {
        ring = slot = rings + threadIdx.x / 32 * (STAGES * STAGE_BYTES);
        ahead_units = num_units;
        begin_tile(p, matrix);
#pragma unroll 1
        for (u32 to = ring; to < ring + STAGES * STAGE_BYTES; to += STAGE_BYTES) advance(p, matrix, to);
    }

    // Unpacks the first tile's first chunks, if there is one: to be done while there is no x yet.
    DEVICE void make_ready(const RowBase& base, bool has_tile) {
        wait_for_group();
        if (!has_tile) return;
        num_ready = min(READY, num_units * L::chunks);
#pragma unroll
        for (int i = 0; i < READY; i++)
            if (i < num_ready) ready[i].load(slot + i / L::chunks * L::unit_bytes, i % L::chunks, base);
    }

    // acc += the warp's segment of its next tile, or its last, times x, whose rows begin at `x`.
    DEVICE void multiply(const Params& p, const u8* matrix, float (&acc)[4], const RowBase& base, u32 x, bool is_last) {
        x += first_unit * (L::chunks * 128);
#pragma unroll
        for (int i = 0; i < READY; i++)
            if (i < num_ready) ready[i].multiply(acc, x + i * 128);
        int left = num_units;
        if (is_group_ready()) {
            left -= GROUP, x += GROUP * L::chunks * 128, num_ready = 0;
            if (left > 0 || !is_last) release(p, matrix);
        }
#pragma unroll 1
        for (; left > 0; left -= GROUP) {
            wait_for_group();
#pragma unroll
            for (int unit = 0; unit < GROUP; unit++) {
                if (unit >= left) break;
#pragma unroll
                for (int sub = 0; sub < L::chunks; sub++) {
                    const int chunk = unit * L::chunks + sub;
                    if (chunk < READY && chunk < num_ready) continue;
                    Fragments fragments;
                    fragments.load(slot + unit * L::unit_bytes, sub, base);
                    fragments.multiply(acc, x + chunk * 128);
                }
            }
            num_ready = 0, x += GROUP * L::chunks * 128;
            if (left <= GROUP && is_last) break;  // nothing follows
            release(p, matrix);
        }
    }
};
