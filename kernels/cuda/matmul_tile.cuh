// The tiles of matmul_tile.cu on Hopper.
#pragma once
#include "bulk.cuh"

constexpr int PROCESSOR_BYTES = 216 * 1024;  // of shared memory, for the blocks that are on a processor at once
constexpr int BARRIER_BYTES = 256;

// Blocks on a processor: while one waits for a barrier or for its products, others unpack weights.
template <int TOKENS>
constexpr int RESIDENTS = TOKENS > 64 ? 1 : TOKENS > 32 ? 2 : TOKENS > 16 ? 3 : 4;

struct TileParams {
    Params p;
    alignas(64) u8 x_map[128];  // tensor map of x, float16 [rows, width], boxes of 64 columns x TOKENS
};

// Shared memory, in this order: stages of x (a chunk each) at multiples of 1024 bytes, stages of weights (a unit of k of
// the block's 128 rows each), barriers.
template <int TOKENS>
struct Ring {
    static constexpr int x_bytes = TOKENS * 128, block_bytes = 4 * Layout<FORMAT>::unit_bytes, unit_bytes = 2 * block_bytes;
    static constexpr int units = Layout<FORMAT>::is_k || FORMAT == F32 ? 2 : 4;
    static constexpr int least = units * unit_bytes + 4 * x_bytes + 1024 + BARRIER_BYTES;
    DEVICE static constexpr int blocks_that_fit(int most) {
        return most == 1 || least <= PROCESSOR_BYTES / most ? most : blocks_that_fit(most - 1);
    }
    static constexpr int most = PROCESSOR_BYTES / blocks_that_fit(RESIDENTS<TOKENS>) - 1024 - BARRIER_BYTES;
    static constexpr int fitting = (most - units * unit_bytes) / x_bytes;
    static constexpr int stages = fitting < MAX_STAGES ? fitting : MAX_STAGES;
    static_assert(stages >= 3, "a stage is filled while another one is read and products of a third still run");
};

// Products of half a chunk (2 steps of 16 columns) of a warpgroup's 64 outputs with the TOKENS rows of x at `stage`.
// They run on after the call.
template <int TOKENS>
DEVICE void multiply(Accumulators<TOKENS>& acc, const u32 (&a)[2][4], u32 stage, int half) {
    wgmma_fence();
    const u64 descriptor = wgmma_descriptor(stage) + 4 * half;
    wgmma_64(acc.d, a[0], descriptor);
    wgmma_64(acc.d, a[1], descriptor + 2);
    wgmma_commit();
}

template <int TOKENS>
DEVICE void matmul_tile(const TileParams& t) {
    using R = Ring<TOKENS>;
    using L = Layout<FORMAT>;
    constexpr bool sums_segments = TOKENS <= SUMMING_TOKENS;
    const Params& p = t.p;
    Work work;
    if (!work.find(p, TOKENS)) return;
    extern __shared__ u8 unaligned[];
    const u32 x_stages = (shared_address(unaligned) + 1023) & ~1023u;
    const u32 weight_stages = x_stages + R::stages * R::x_bytes;
    const u32 x_full = weight_stages + R::units * R::unit_bytes, unit_full = x_full + 8 * R::stages;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool copies = threadIdx.x == 0;
    const int first_block = blockIdx.x * 2, num_blocks = min(2, (p.num_rows + 63) / 64 - first_block);
    const u8* weights = p.weights + work.expert * p.expert_bytes;
    const int first_unit = work.first_chunk / L::chunks, last_unit = work.last_chunk / L::chunks;
    auto copy_unit = [&](int unit, int stage) {
        if (unit >= last_unit) return;
        barrier_arrive_expecting(unit_full + 8 * stage, num_blocks * R::block_bytes);
        for (int i = 0; i < num_blocks; i++)
            copy_bulk(weight_stages + stage * R::unit_bytes + i * R::block_bytes,
                      weights + ((i64)(first_block + i) * p.num_units + unit) * R::block_bytes, R::block_bytes,
                      unit_full + 8 * stage);
    };
    auto copy_x = [&](int chunk, int stage) {
        if (chunk >= work.last_chunk) return;
        barrier_arrive_expecting(x_full + 8 * stage, R::x_bytes);
        copy_box(x_stages + stage * R::x_bytes, t.x_map, chunk * 64, work.first_token, x_full + 8 * stage);
    };
    if (copies) {
        for (int i = 0; i < R::stages; i++) barrier_init(x_full + 8 * i, 1);
        for (int i = 0; i < R::units; i++) barrier_init(unit_full + 8 * i, 1);
        publish_barriers();
        for (int i = 0; i < R::units - 1; i++) copy_unit(first_unit + i, i);  // constants, before the wait
    }
    prefetch_rows(p, work);
    if (!p.tiles) wait_for_previous();
    if (copies)
        for (int i = 0; i < R::stages - 2; i++) copy_x(work.first_chunk + i, i);

    const int tile = blockIdx.x * 8 + warp;
    const RowBase base = row_base(p, work.expert, tile, lane);
    Accumulators<TOKENS> acc;
    Accumulators<sums_segments ? TOKENS : 8> total;
    acc.clear(), total.clear();
    RingPlace x, unit;
    int x_filling = R::stages - 2, unit_filling = R::units - 1;
    for (int segment = work.first_segment, chunk = work.first_chunk; segment < work.last_segment; segment++) {
        for (const int end = segment_start(segment + 1, p) * Layout<FORMAT>::chunks; chunk < end; chunk++) {
            // Everybody has read the weights of the chunk before and finished the products of the one before that.
            __syncthreads();
            const int sub = chunk % L::chunks;
            const bool begins_unit = sub == 0;
            if (copies) {
                copy_x(chunk + R::stages - 2, x_filling);
                if (begins_unit) copy_unit(chunk / L::chunks + R::units - 1, unit_filling);
            }
            if (++x_filling == R::stages) x_filling = 0;
            if (begins_unit) {
                if (++unit_filling == R::units) unit_filling = 0;
                barrier_wait(unit_full + 8 * unit.stage, unit.phase);
            }
            Raw<FORMAT> raw;
            raw.load_shared(weight_stages + unit.stage * R::unit_bytes + warp * L::unit_bytes, sub, lane);
            if (sub == L::chunks - 1) unit.advance(R::units);
            const Scales<FORMAT> scales(raw, base);
            const u32 stage = x_stages + x.stage * R::x_bytes;
            u32 a[2][2][4];  // while one half's products run, the other half is dequantised
#pragma unroll
            for (int half = 0; half < 2; half++) {
                wgmma_wait<1>();
                fragment_of<FORMAT>(raw, scales, 2 * half, a[half][0]);
                fragment_of<FORMAT>(raw, scales, 2 * half + 1, a[half][1]);
                if (half == 0) barrier_wait(x_full + 8 * x.stage, x.phase);
                multiply<TOKENS>(acc, a[half], stage, half);
            }
            x.advance(R::stages);
        }
        wgmma_wait<0>();
        if constexpr (sums_segments) {
            total.add(acc);
            acc.clear();
        }
    }
    float* sums = (float*)(unaligned + (x_stages - shared_address(unaligned)));  // the rings are done with
    const int segment = gridDim.z > 1 ? work.first_segment : -1;
    if constexpr (sums_segments)
        store_tile(p, work, segment, sums, total);
    else
        store_tile(p, work, segment, sums, acc);
}

#define TILE_KERNEL(TOKENS)                                                                                       \
    KERNEL __launch_bounds__(256, RESIDENTS<TOKENS>) matmul_tile_##TOKENS(const __grid_constant__ TileParams t) { \
        matmul_tile<TOKENS>(t);                                                                                   \
    }
TILE_KERNEL(16)
TILE_KERNEL(32)
TILE_KERNEL(64)
TILE_KERNEL(128)
TILE_KERNEL(256)
