// Products of one to four tokens: which tiles a warp has, and their weights. It copies the units of its tile itself,
// some ahead of the one that it computes with. (Hopper's copy engine took fewer instructions here and was 5-20 % slower
// on an H100.)
#pragma once
#include "../norm/norm.cuh"
#include "matmul.cuh"

static_assert(ROW_QUADS * PARTITION_STEP == MAX_NORMED_WIDTH, "what a block of matmul_gemv_normed can norm");

// Which experts a token goes through: those with the largest logits.
struct RoutingParams {
    const float* router_logits;  // [num_tokens, num_experts]
    int* experts;                // [num_tokens, num_used] by rank; written by the first product
    const u8* shared_packed;     // of an expert after those chosen, which every token goes through; null: there is none
    const float* shares;         // [num_tokens] what that one is multiplied by
    int num_experts, num_used;
    int x_row_of_pair;  // each (token, expert) has a row of x of its own, not each token
    int is_first;       // the product comes after the router; else after another product
};

// The parameters of matmul_gemv* and matmul_small_batch. They come from memory in lines of 64 bytes, one after the
// other, the first of which holds 48: what weights and x are asked for with, up to `num_units`.
struct SmallBatchParams {
    const void* x;      // [num_x_rows, width] float16; matmul_gemv_normed: float32
    int tiles_at_once;  // of a block
    // OVERLAPS_PREVIOUS: what it reads was there before the previous kernel began; PICKS_ROWS; HAS_WAITING_WARP: the
    // last one, without a tile, waits for the previous kernel at once, so that a product that overlaps this one starts
    int flags;
    MatrixParams matrix;
    const int* x_rows;  // [num_tokens] which row of x, if it PICKS_ROWS; else null: in order
    OutputParams output;
    NormParams norm;  // matmul_gemv_normed
    int ring_at;      // where in shared memory weights are
    int num_tokens;
    RoutingParams routing;  // matmul_gemv_routed

    DEVICE bool overlaps_previous() const { return flags & OVERLAPS_PREVIOUS; }
};

extern __shared__ __align__(32) u8 shared[];

constexpr int MAX_BLOCK_WARPS = Layout<FORMAT>::block_warps;
using Factors = RowFactors<Layout<FORMAT>::scaling>;
constexpr bool STREAMED = Layout<FORMAT>::is_streamed;  // one token's weights: matmul_streamed.cuh

// x was there before the previous kernel began: see `acquire`.
DEVICE void begin_overlapped() {
    start_next();
    acquire();
}
// Waits until the previous kernel is done, if it writes x.
DEVICE void wait_for_x(const SmallBatchParams& p) {
    if (p.overlaps_previous())
        begin_overlapped();
    else
        wait_for_previous();
}

// Where a warp of a block is, of those that share its tiles: the warps of a tile lie together, one for each partition.
struct Place {
    int local_tile, partition;
    int block_tile, tile;  // the block's first, and the warp's; none if it is but `num_tiles`
    int tile_step, num_tiles;

    DEVICE explicit Place(const SmallBatchParams& p)
        : tile_step(gridDim.x * p.tiles_at_once), num_tiles((p.matrix.num_rows + 15) / 16) {
        const int warp = threadIdx.x / 32;
        local_tile = warp * p.matrix.partition_reciprocal >> RECIPROCAL_BITS;
        partition = warp - local_tile * p.matrix.num_partitions;
        block_tile = blockIdx.x * p.tiles_at_once;
        tile = local_tile < p.tiles_at_once ? block_tile + local_tile : num_tiles;
    }
};

// Waits until the sums of all warps of a tile are in shared memory.
DEVICE void wait_for_partitions(const SmallBatchParams& p) {
    if (p.matrix.num_partitions > 1)
        __syncthreads();
    else
        __syncwarp();
}

// A chunk of a tile as the tensor core's A operands, for its four steps of 16 columns.
struct Fragments {
    u32 a[4][4];

    DEVICE void load(u32 unit, int sub, const Factors& rows) {
        Raw<FORMAT> raw;
        raw.load_shared(unit, sub, threadIdx.x % 32);
        unpack(raw, Scales<FORMAT>(raw, rows));
    }
    DEVICE void unpack(const Raw<FORMAT>& raw, const Scales<FORMAT>& scales) {
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

// One warp's partition of its tiles, one tile after the other.
class Weights {
    using L = Layout<FORMAT>;
    static constexpr int GROUP = L::units_per_copy;
    static constexpr int STAGE_BYTES = GROUP * L::unit_bytes, VECTORS = L::unit_bytes / 16;
    static constexpr int READY = GROUP * L::chunks < READY_CHUNKS ? GROUP * L::chunks : READY_CHUNKS;
    static constexpr int STAGES = 2;  // more in flight, on all SMs, was slower

    const u8* next_unit;  // this lane's first 16 bytes of the unit that is fetched next
    int next_units;       // units left to fetch in its tile
    int next_tile, tile_step, num_tiles;
    int first_unit, num_units;
    u32 ring, stage;
    Fragments ready[READY];  // the first tile's first chunks: unpacked while the warp waits for x
    int num_ready = 0;

    DEVICE void fetch(u32 to) {
        const int lane = threadIdx.x % 32;
        to += lane * 16;
#pragma unroll
        for (int unit = 0; unit < GROUP; unit++)
#pragma unroll
            for (int vector = 0; vector < VECTORS; vector += 32)
                copy_if(unit < next_units && vector + lane < VECTORS, to + unit * L::unit_bytes + vector * 16,
                        next_unit + unit * 4 * L::unit_bytes + vector * 16);
        next_unit += GROUP * 4 * L::unit_bytes;
    }
    DEVICE void begin_tile(const MatrixParams& matrix, const u8* packed) {
        next_unit =
            unit_address<FORMAT>(packed, next_tile, first_unit * L::chunks, matrix.num_units) + threadIdx.x % 32 * 16;
    }
    DEVICE void advance(const MatrixParams& matrix, const u8* packed, u32 to) {
        if (next_tile < num_tiles) {
            fetch(to);
            if ((next_units -= GROUP) <= 0) {
                next_tile += tile_step, next_units = num_units;
                begin_tile(matrix, packed);
            }
        }
        copy_commit();
    }
    DEVICE void wait_for_group() const {
        copy_wait<STAGES - 1>();
        __syncwarp();
    }
    // All lanes have read what lies in the stage: what comes next may take its place.
    DEVICE void release(const MatrixParams& matrix, const u8* packed) {
        __syncwarp();
        advance(matrix, packed, stage);
        if ((stage += STAGE_BYTES) == ring + STAGES * STAGE_BYTES) stage = ring;
    }
    DEVICE bool is_group_ready() const { return num_ready && num_ready == min(GROUP, num_units) * L::chunks; }

   public:
    DEVICE Weights(const MatrixParams& matrix, const u8* packed, u32 rings, int partition, int tile, int tile_step,
                   int num_tiles)
        : next_tile(tile),
          tile_step(tile_step),
          num_tiles(num_tiles),
          first_unit(partition_start(partition, matrix)),
          num_units(partition_start(partition + 1, matrix) - first_unit) {
        ring = stage = rings + threadIdx.x / 32 * (STAGES * STAGE_BYTES);
        next_units = num_units;
        begin_tile(matrix, packed);
#pragma unroll 1
        for (u32 to = ring; to < ring + STAGES * STAGE_BYTES; to += STAGE_BYTES) advance(matrix, packed, to);
    }

    DEVICE void begin(const MatrixParams&, const u8*) {}  // the ring is under way
    // Unpacks the first tile's first chunks, if there is one: to be done while there is no x yet.
    DEVICE void make_ready(const Factors& rows, bool has_tile) {
        wait_for_group();
        if (!has_tile) return;
        num_ready = min(READY, num_units * L::chunks);
#pragma unroll
        for (int i = 0; i < READY; i++)
            if (i < num_ready) ready[i].load(stage + i / L::chunks * L::unit_bytes, i % L::chunks, rows);
    }

    // Where in a row of x its partition begins.
    DEVICE u32 x_at() const { return first_unit * (L::chunks * 128); }
    // acc += the warp's partition of its next tile, or its last, times x, whose rows begin at `x`.
    DEVICE void multiply(const MatrixParams& matrix, const u8* packed, float (&acc)[4], const Factors& rows, u32 x,
                         bool is_last) {
#pragma unroll
        for (int i = 0; i < READY; i++)
            if (i < num_ready) ready[i].multiply(acc, x + i * 128);
        int left = num_units;
        if (is_group_ready()) {
            left -= GROUP, x += GROUP * L::chunks * 128, num_ready = 0;
            if (left > 0 || !is_last) release(matrix, packed);
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
                    fragments.load(stage + unit * L::unit_bytes, sub, rows);
                    fragments.multiply(acc, x + chunk * 128);
                }
            }
            num_ready = 0, x += GROUP * L::chunks * 128;
            if (left <= GROUP && is_last) break;  // nothing follows
            release(matrix, packed);
        }
    }
};
