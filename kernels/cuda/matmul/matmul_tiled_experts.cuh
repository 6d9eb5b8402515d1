// Experts on Hopper, of formats whose units hold four chunks: y = x W^T in tiles of one expert each, as matmul_tiled.cu
// makes them and with the same bits, but
//   - a block takes one tile after the other: x and weights of the next one are on their way while it stores;
//   - in the largest tiles partitions take turns with two accumulators, so that the tensor cores go on while a
//     partition's sum is added.
#pragma once
#include "matmul_tiled_ahead.cuh"

namespace experts {

constexpr int GROUP = 2;  // chunks between two barriers of the block; a unit has two such groups
using L = Layout<FORMAT>;

// Shared memory, in this order: groups of x, at multiples of 1024 bytes; weights, a unit of the block's 128 rows each;
// outputs on their way; barriers.
template <int TOKENS>
struct Ring : StayingRing<FORMAT, TOKENS> {
    using T = StayingRing<FORMAT, TOKENS>;
    static constexpr int box_bytes = TOKENS * 128, x_bytes = GROUP * box_bytes, weight_bytes = 8 * L::unit_bytes;
    static constexpr int weights_at = T::stages * x_bytes, store_at = weights_at + 2 * weight_bytes;
    static constexpr int barriers_at = store_at + T::store_bytes;
    static_assert(1024 + barriers_at + 8 * (T::stages + 2) <= T::num_bytes, "see `staying_ring`");
    static_assert(T::stages >= 3, "a stage is filled while another one is read and products of a third still run");
};

// What of a tile a block works on, and the next one.
struct Tiles {
    const TiledParams& p;
    int row_blocks, num_work, index;
    int4 entry, next_entry;

    DEVICE explicit Tiles(const TiledParams& p)
        : p(p), row_blocks((p.matrix.num_rows + 127) / 128), num_work(*p.num_tiles * row_blocks), index(blockIdx.x) {
        entry = next_entry = at(index);
        load_next();
    }
    DEVICE bool has_one() const { return index < num_work; }
    DEVICE bool has_next() const { return index + (int)gridDim.x < num_work; }
    DEVICE int row_block() const { return index % row_blocks; }
    DEVICE int next_row_block() const { return (index + (int)gridDim.x) % row_blocks; }
    DEVICE void advance() {
        index += gridDim.x, entry = next_entry;
        load_next();
    }

   private:
    DEVICE int4 at(int i) const { return i < num_work ? p.tiles[i / row_blocks] : int4{}; }
    DEVICE void load_next() { next_entry = at(index + gridDim.x); }
};

template <int TOKENS, int FIRST = 0>
DEVICE void store_parts(const TiledParams& p, const Work& work, u32 shared, const Accumulators<TOKENS>& sums) {
    constexpr int PART = Ring<TOKENS>::store_tokens;
    store_floats<TOKENS, FIRST, PART>(p, work, shared, sums);
    if constexpr (FIRST + PART < TOKENS) {
        if (work.num_tokens <= FIRST + PART) return;
        __syncthreads();
        store_parts<TOKENS, FIRST + PART>(p, work, shared, sums);
    }
}

template <int TOKENS>
DEVICE void store(const TiledParams& p, const Work& work, u32 shared, const Accumulators<TOKENS>& sums) {
    const int kind = p.output.epilogue;
    if (kind == SWIGLU) store_gated<TOKENS, SWIGLU>(p, work, shared, sums);
    if (kind == GEGLU) store_gated<TOKENS, GEGLU>(p, work, shared, sums);
    if (kind == STORE_FLOAT) store_parts<TOKENS>(p, work, shared, sums);
}

// What a block works with, one tile after the other.
template <int TOKENS>
struct Multiplier {
    using R = Ring<TOKENS>;
    static constexpr int STAGES = R::stages, AHEAD = STAGES - 2;  // groups
    static constexpr bool TWICE = TOKENS == 128;                  // accumulators

    const HopperTiledParams& t;
    const MatrixParams& matrix;
    Tiles& tiles;
    u32 x_stages, weight_stages, x_full, weights_full;
    int warp, lane;
    RingPlace x;
    int weight_stage = 0, weight_phase = 0;
    RowBase base;

    DEVICE Multiplier(const HopperTiledParams& t, Tiles& tiles, u32 shared)
        : t(t),
          matrix(t.tiled.matrix),
          tiles(tiles),
          x_stages(shared),
          weight_stages(shared + R::weights_at),
          x_full(shared + R::barriers_at),
          weights_full(x_full + 8 * STAGES),
          warp(__shfl_sync(ALL_LANES, threadIdx.x / 32, 0)),
          lane(threadIdx.x % 32) {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) barrier_init(x_full + 8 * i, 1);
            for (int i = 0; i < 2; i++) barrier_init(weights_full + 8 * i, 1);
            publish_barriers();
        }
        __syncthreads();
        if (copies_weights()) copy_weights(0, 0);
        if (copies_x())
            for (int i = 0; i < AHEAD; i++) copy_x(i, i);
    }

    // ---- copying: two threads do it, always the same distance ahead, first the first groups, then one at each barrier

    DEVICE bool copies_x() const { return threadIdx.x == 0; }
    DEVICE bool copies_weights() const { return threadIdx.x == 128; }
    DEVICE void copy_x(int group, int stage) const {  // beyond the tile's last group: of the next tile
        int first_token = tiles.entry.y;
        if (group >= 2 * matrix.num_units) {
            if (!tiles.has_next()) return;
            group -= 2 * matrix.num_units, first_token = tiles.next_entry.y;
        }
        const u32 to = x_stages + stage * R::x_bytes, full = x_full + 8 * stage;
        barrier_arrive_expecting(full, R::x_bytes);
#pragma unroll
        for (int i = 0; i < GROUP; i++)
            copy_box(to + i * R::box_bytes, t.x_map, (group * GROUP + i) * 64, first_token, full);
    }
    DEVICE void copy_weights(int unit, int stage) const {
        int expert = tiles.entry.x, row_block = tiles.row_block();
        if (unit >= matrix.num_units) {
            if (!tiles.has_next()) return;
            unit -= matrix.num_units, expert = tiles.next_entry.x, row_block = tiles.next_row_block();
        }
        const u32 to = weight_stages + stage * R::weight_bytes, full = weights_full + 8 * stage;
        const u8* weights = matrix.packed + expert * matrix.expert_bytes;
        const int num_blocks = min(2, (matrix.num_rows + 63) / 64 - 2 * row_block);
        barrier_arrive_expecting(full, num_blocks * 4 * L::unit_bytes);
#pragma unroll 1
        for (int i = 0; i < num_blocks; i++)
            copy_bulk(to + i * 4 * L::unit_bytes,
                      weights + ((i64)(2 * row_block + i) * matrix.num_units + unit) * (4 * L::unit_bytes),
                      4 * L::unit_bytes, full);
    }

    // ---- multiplying

    // The products of a unit, to `acc`. With FIRST it is a partition's first one, and `acc` begins anew; meanwhile
    // `before`, the sum of the partition before, is added to `total`, if it is one (`adds`).
    template <bool FIRST, int BEFORE_TOKENS>
    DEVICE void multiply_unit(int unit, bool adds, Accumulators<TOKENS>& acc, const Accumulators<BEFORE_TOKENS>& before,
                              Accumulators<TOKENS>& total) {
#pragma unroll
        for (int group = 0; group < 2; group++) {
            // Everybody has read the weights of the unit before and finished the products of the group before the last.
            __syncthreads();
            if (copies_x()) copy_x(2 * unit + group + AHEAD, (x.stage + AHEAD) % STAGES);
            if (group == 0) {
                if (copies_weights()) copy_weights(unit + 1, weight_stage ^ 1);
                barrier_wait(weights_full + 8 * weight_stage, weight_phase);
            }
            const u32 x_stage = x_stages + x.stage * R::x_bytes;
#pragma unroll
            for (int i = 0; i < GROUP; i++) {
                Raw<FORMAT> raw;
                raw.load_shared(weight_stages + weight_stage * R::weight_bytes + warp * L::unit_bytes,
                                group * GROUP + i, lane);
                const Scales<FORMAT> scales(raw, base);
                u32 a[2][2][4];  // while one half's products run, the other half is dequantised
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const bool begins = FIRST && group == 0 && i == 0 && half == 0;
                    wgmma_wait<1>();
                    fragment_of<FORMAT>(raw, scales, 2 * half, a[half][0]);
                    fragment_of<FORMAT>(raw, scales, 2 * half + 1, a[half][1]);
                    if (i == 0 && half == 0) barrier_wait(x_full + 8 * x.stage, x.phase);
                    const u64 descriptor = wgmma_descriptor(x_stage + i * R::box_bytes) + 4 * half;
                    if (begins) wgmma_wait<0>();
                    wgmma_fence();
                    wgmma_rows<false>(acc.d, a[half][0], descriptor, !begins);
                    wgmma_64(acc.d, a[half][1], descriptor + 2);
                    wgmma_commit();
                    if constexpr (BEFORE_TOKENS == TOKENS)
                        if (begins && adds) total.add(before);
                }
            }
            x.advance(STAGES);
        }
        weight_stage ^= 1;
        if (weight_stage == 0) weight_phase ^= 1;
    }
    template <int BEFORE_TOKENS>
    DEVICE void multiply_partition(int partition, Accumulators<TOKENS>& acc, const Accumulators<BEFORE_TOKENS>& before,
                                   Accumulators<TOKENS>& total) {
        int unit = partition_start(partition, matrix);
        const int end = partition_start(partition + 1, matrix);
        multiply_unit<true>(unit, partition > 0, acc, before, total);
#pragma unroll 1
        while (++unit < end) multiply_unit<false>(unit, false, acc, before, total);
    }
    DEVICE void multiply_tile(const Work& work, Accumulators<TOKENS>& total) {
        base = row_base(matrix, work.expert, tiles.row_block() * 8 + warp, lane);
        Accumulators<TOKENS> even;
        Accumulators<TWICE ? TOKENS : 8> odd;  // of partitions
        total.clear();
        if constexpr (TWICE) {
#pragma unroll 1
            for (int partition = 0;;) {
                multiply_partition(partition, even, odd, total);
                if (++partition == matrix.num_partitions) {
                    wgmma_wait<0>();
                    total.add(even);
                    break;
                }
                multiply_partition(partition, odd, even, total);
                if (++partition == matrix.num_partitions) {
                    wgmma_wait<0>();
                    total.add(odd);
                    break;
                }
            }
        } else {
#pragma unroll 1
            for (int partition = 0; partition < matrix.num_partitions; partition++) {
                multiply_partition(partition, even, odd, total);
                wgmma_wait<0>();
                total.add(even);
            }
        }
    }
};

template <int TOKENS>
DEVICE void multiply(const HopperTiledParams& t) {
    wait_for_previous();
    Tiles tiles(t.tiled);
    if (!tiles.has_one()) return;
    extern __shared__ u8 unaligned[];
    const u32 shared = (shared_address(unaligned) + 1023) & ~1023u;
    Multiplier<TOKENS> multiplier(t, tiles, shared);
#pragma unroll 1
    for (; tiles.has_one(); tiles.advance()) {
        Work work{};
        work.expert = tiles.entry.x, work.first_token = tiles.entry.y, work.num_tokens = tiles.entry.z;
        work.first_row = tiles.row_block() * 128;
        Accumulators<TOKENS> total;
        multiplier.multiply_tile(work, total);
        store(t.tiled, work, shared + Ring<TOKENS>::store_at, total);
    }
}

}  // namespace experts
