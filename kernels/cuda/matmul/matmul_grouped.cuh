// The tiles of matmul_grouped.cu.
#pragma once
#include "matmul_tiled.cuh"
#include "../common/bulk.cuh"

constexpr int WARPGROUP = 128;
constexpr int GROUPS = GroupedRing<FORMAT, SIZE, HAS_PARTITIONS>::groups;  // of 64 outputs, that a block computes
constexpr int STORE_BARRIERS = 1;  // named barriers: each warpgroup that multiplies has one

// The block synchronises for a stage of one or two units of columns; stages begin anew with each partition, whose first
// one may be short. Shared memory, in this order: stages of x, at multiples of 1024 bytes; stages of weights of the
// block's rows; outputs of each warpgroup on their way; barriers.
struct Ring : GroupedRing<FORMAT, SIZE, HAS_PARTITIONS> {
    using T = GroupedRing<FORMAT, SIZE, HAS_PARTITIONS>;
    using L = Layout<FORMAT>;
    static constexpr int units = T::chunks / L::chunks;  // of a stage
    static constexpr int box_bytes = SIZE * 128, x_bytes = T::chunks * box_bytes;
    static constexpr int unit_bytes = 4 * L::unit_bytes;  // of 64 rows
    static constexpr int block_bytes = units * unit_bytes, weight_bytes = GROUPS * block_bytes;
    static constexpr int weights_at = T::stages * x_bytes, stores_at = weights_at + T::stages * weight_bytes;
    static constexpr int full_at = stores_at + GROUPS * T::store_bytes, empty_at = full_at + 8 * T::stages;
    static_assert(!L::has_grid, "nothing loads a grid");
    static_assert(units * L::chunks == T::chunks && (units == 1 || units == 2), "of a stage");
    static_assert(empty_at + 8 * T::stages <= T::num_bytes, "see `grouped_ring`");
    static_assert(T::stages >= 2, "a stage is filled while another one is read");
};

struct Tile {
    int4 entry;     // of the list
    int row_block;  // of 64 * GROUPS outputs
};

// The tiles of a block, one after the other. They come by their size: whoever has the largest of a round of all blocks
// has the smallest of the next one.
struct Tiles {
    const TiledParams& p;
    int row_blocks, num_work, round = 0;
    Tile own, next;  // where there is no next one: a part of the first expert, which does no harm

    DEVICE explicit Tiles(const TiledParams& p)
        : p(p), row_blocks((p.matrix.num_rows + 64 * GROUPS - 1) / (64 * GROUPS)), num_work(*p.num_tiles * row_blocks) {
        own = at(index_of(0)), next = at(index_of(1));
    }
    DEVICE bool has_one() const { return index_of(round) < num_work; }
    DEVICE void advance() {
        round++;
        own = next, next = at(index_of(round + 1));
    }

   private:
    DEVICE int index_of(int round) const {
        return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    }
    DEVICE Tile at(int i) const { return {i < num_work ? p.tiles[i / row_blocks] : int4{}, i % row_blocks}; }
};

// ---- copying

// One thread copies x, and some the weights of COPIED_GROUPS times 64 rows each: a single one cannot ask for as many
// copies as there are. `copier`: of the latter; X: of the former.
constexpr int COPIED_GROUPS = GROUPS > 3 ? 2 : 1, COPIERS = GROUPS / COPIED_GROUPS, X = -1;
DEVICE void copy_tiles(const GroupedParams& t, u32 shared, int copier) {
    using R = Ring;
    const MatrixParams& matrix = t.tiled.matrix;
    RingPlace place;
    for (Tiles tiles(t.tiled); tiles.has_one(); tiles.advance()) {
        const int4 entry = tiles.own.entry;
        const int number = max(entry.z - 1, R::least - 1) / R::step, box_bytes = (number + 1) * R::step * 128;
        const u8* x_map = t.x_maps + 128 * number;
        const int row_block = GROUPS * tiles.own.row_block + COPIED_GROUPS * copier;
        const int num_blocks = min(COPIED_GROUPS, (matrix.num_rows + 63) / 64 - row_block);  // may be none
        const i64 block_stride = (i64)matrix.num_units * R::unit_bytes;
        const u8* weights = matrix.packed + entry.x * matrix.expert_bytes + row_block * block_stride;
        for (int partition = 0, unit = 0; partition < matrix.num_partitions; partition++) {
            const int end = partition_start(partition + 1, matrix);
            int count = (end - unit) % R::units ? 1 : R::units;
#pragma unroll 1
            for (; unit < end; unit += count, count = R::units) {
                const u32 full = shared + R::full_at + 8 * place.stage;
                barrier_wait(shared + R::empty_at + 8 * place.stage, place.phase ^ 1);
                if (copier == X) {
                    barrier_arrive_expecting(full, count * (R::L::chunks * box_bytes));
#pragma unroll
                    for (int i = 0; i < R::chunks; i++)
                        if (i < count * R::L::chunks)
                            copy_box(shared + place.stage * R::x_bytes + i * R::box_bytes, x_map,
                                     (unit * R::L::chunks + i) * 64, entry.y, full);
                } else {
                    barrier_arrive_expecting(full, max(num_blocks, 0) * count * R::unit_bytes);
#pragma unroll
                    for (int i = 0; i < COPIED_GROUPS; i++)
                        if (i < num_blocks)
                            copy_bulk(shared + R::weights_at + place.stage * R::weight_bytes +
                                          (COPIED_GROUPS * copier + i) * R::block_bytes,
                                      weights + i * block_stride + unit * R::unit_bytes, count * R::unit_bytes, full);
                }
                place.advance(R::stages);
            }
            unit = end;
        }
    }
}

// ---- storing: sums of a tile, 64 rows of a warpgroup, go through shared memory, so that 16 bytes are stored at a time

DEVICE float4 load_quad(u32 address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

// What the sums of a thread's two rows of a tile need.
struct TileRows {
    OutputRow row[2];

    DEVICE RowBase base() const { return {{row[0].exponent, row[1].exponent}}; }
};

struct TileStore {
    const TiledParams& p;
    u32 buffers;  // `store_bytes`
    int barrier;  // of the warpgroup

    // Gated activations are made where both their sums are; 32 tokens at a time.
    template <int KIND, int WIDTH>
    DEVICE void store_gated(const int4& entry, int first_row, const TileRows& rows,
                            const Accumulators<WIDTH>& sums) const {
        constexpr int stride = 32 * 2 + 16;  // bytes of a token: no bank conflicts
        constexpr bool is_twice = 2 * 32 * stride <= Ring::store_bytes;
        static_assert(32 * stride <= Ring::store_bytes, "32 tokens");
        const Epilogue epilogue(p.output, KIND);
        const int thread = threadIdx.x % WARPGROUP, warp = thread / 32, lane = thread % 32;
        const int part = thread % 4;
        const OutputRow &gate = rows.row[0], &up = rows.row[1];
        const bool exists = first_row + 16 * part < p.matrix.num_rows;
        u16* out = (u16*)p.output.out + epilogue.index(entry.y, first_row) + 8 * part;
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n += 4)
            if (8 * n < entry.z) {
                u32 y[4] = {};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (n + i >= WIDTH / 8) break;
                    const float (&d)[4] = sums.d[n + i];
                    y[i] = pack_half2(epilogue.value(gate.of(d[0]), up.of(d[2]), NO_RESIDUAL),
                                      epilogue.value(gate.of(d[1]), up.of(d[3]), NO_RESIDUAL));
                }
                const u32 buffer = buffers + (is_twice ? n / 4 % 2 * (32 * stride) : 0);
                if (n == 0 || !is_twice) synchronise(barrier, WARPGROUP);  // what lay there has been read
                store_matrices_transposed(y, buffer + lane * stride + warp * 16);
                synchronise(barrier, WARPGROUP);
                const int token = 8 * n + thread / 4;
                if (exists && token < entry.z)
                    *(float4*)(out + (i64)token * p.output.stride) =
                        load_quad(buffer + thread / 4 * stride + part * 16);
            }
    }
    // Sums as they are, with scale and bias.
    template <int WIDTH>
    DEVICE void store_floats(const int4& entry, int first_row, const TileRows& rows,
                             const Accumulators<WIDTH>& sums) const {
        constexpr int stride = (64 + 4) * 4;  // bytes of a token: no bank conflicts
        constexpr int parts = Ring::store_tokens / 8;
        static_assert(2 * 8 * parts * stride <= Ring::store_bytes, "twice");
        const Epilogue epilogue(p.output, STORE_FLOAT);
        const int thread = threadIdx.x % WARPGROUP, warp = thread / 32, lane = thread % 32;
        const int row = first_row + thread % 16 * 4, own = thread / 16;
        const bool exists = row < p.matrix.num_rows;
        float* out = (float*)p.output.out + epilogue.index(entry.y, row);
        const u32 to = buffers + 2 * (lane % 4) * stride + (warp * 16 + lane / 4) * 4;
        const u32 from = buffers + own * stride + thread % 16 * 16;
        synchronise(barrier, WARPGROUP);  // what lay there has been read
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n += parts)
            if (8 * n < entry.z) {
                const u32 buffer = n / parts % 2 * (8 * parts * stride);
#pragma unroll
                for (int j = 0; j < parts; j++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        asm volatile("st.shared.f32 [%0], %1;"
                                     :
                                     : "r"(to + buffer + (8 * j + i % 2) * stride + i / 2 * 32),
                                       "f"(epilogue.value(rows.row[i / 2].of(sums.d[n + j][i]), 0.0f, NO_RESIDUAL))
                                     : "memory");
                synchronise(barrier, WARPGROUP);
#pragma unroll
                for (int j = 0; j < parts; j++) {
                    const float4 v = load_quad(from + buffer + 8 * j * stride);
                    const int token = 8 * (n + j) + own;
                    if (exists && token < entry.z) *(float4*)(out + (i64)token * p.output.stride) = v;
                }
            }
    }
    template <int WIDTH>
    DEVICE void store(const int4& entry, int first_row, const TileRows& rows, const Accumulators<WIDTH>& sums) const {
        const int kind = p.output.epilogue;
        if (kind == SWIGLU) store_gated<SWIGLU>(entry, first_row, rows, sums);
        if (kind == CLAMPED_SWIGLU) store_gated<CLAMPED_SWIGLU>(entry, first_row, rows, sums);
        if (kind == GEGLU) store_gated<GEGLU>(entry, first_row, rows, sums);
        if (kind == STORE_FLOAT) store_floats(entry, first_row, rows, sums);
    }
};

// ---- multiplying

struct Multiplier {
    using R = Ring;
    using L = Layout<FORMAT>;

    const MatrixParams& matrix;
    const TileStore store;
    u32 shared, weights;  // those of the warp's 16 rows, in the first stage
    int warpgroup, warp, lane;
    u64 x_descriptor;  // of the first stage
    RingPlace place;
    TileRows rows;  // of the tile, which come while the one before is stored

    // All lanes have read the stage of `barrier`; 0: there is none. Not by a branch, for which the compiler would not
    // let products run on.
    DEVICE void release(u32 barrier) const {
        __syncwarp();
        asm volatile(
            "{.reg .pred p; setp.ne.u32 p, %1, 0;\n"
            "@p mbarrier.arrive.shared::cta.b64 _, [%0];}" ::"r"(barrier),
            "r"(lane == 0 ? barrier : 0)
            : "memory");
    }
    DEVICE void load(Raw<FORMAT>& raw, u32 stage, int chunk) const {
        raw.load_shared(weights + stage * R::weight_bytes + chunk / L::chunks * R::unit_bytes, chunk % L::chunks, lane);
    }
    DEVICE void load_first(Raw<FORMAT>& raw) const {
        barrier_wait(shared + R::full_at + 8 * place.stage, place.phase);
        load(raw, place.stage, 0);
    }

    // The products of a stage of COUNT chunks. `raw` is the first one's, and in the end the next stage's, unless this
    // is the tile's last one. `previous`: the barrier of the stage whose last products may still run.
    template <int COUNT, int WIDTH>
    DEVICE void multiply_stage(Accumulators<WIDTH>& acc, Raw<FORMAT>& raw, u32& previous, const RowBase& base,
                               bool is_last) {
        const u32 stage = place.stage;
        const u64 descriptor = x_descriptor + stage * (R::x_bytes / 16);
        u32 a[2][4];       // while a step's products run, the next one is dequantised
        Raw<FORMAT> next;  // the next chunk, which is loaded while this one's products run
        bool is_ready = true;
        place.advance(R::stages);
#pragma unroll
        for (int chunk = 0; chunk < COUNT; chunk++) {
            const Scales<FORMAT> scales(raw, base);
#pragma unroll
            for (int step = 0; step < 4; step++) {
                wgmma_wait<1>();
#pragma unroll
                for (int i = 0; i < L::code_words; i++) compute_now(raw.code[i]);  // not before
                if (chunk == 0 && step == 1) release(previous);
                if (chunk + 1 < COUNT && step == 1) load(next, stage, chunk + 1);
                // Of the next stage, if it is there, as it mostly is. The load names a place by the answer, so that it
                // is made behind it: a load that follows the question alone may be made before the copy has ended.
                if (chunk + 1 == COUNT && step == 1)
                    is_ready = barrier_is_done(shared + R::full_at + 8 * place.stage, place.phase);
                if (chunk + 1 == COUNT && step == 2) load(next, is_ready ? place.stage : stage, 0);
                fragment_of<FORMAT>(raw, scales, step, a[step % 2]);
                wgmma_fence();
                wgmma_64(acc.d, a[step % 2], descriptor + chunk * (R::box_bytes / 16) + 2 * step);
                wgmma_commit();
            }
            raw = next;
        }
        if (!is_ready && !is_last) load_first(raw);
        previous = shared + R::empty_at + 8 * stage;
    }
    DEVICE int first_row(const Tile& tile) const { return (tile.row_block * GROUPS + warpgroup) * 64; }
    DEVICE void find_rows(const Tile& tile) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            rows.row[i] = OutputRow(matrix, tile.entry.x, first_row(tile) + warp * 16 + lane / 4 + 8 * i);
    }
    template <int WIDTH>
    DEVICE void multiply_tile(const Tiles& tiles) {
        const TileRows own = rows;
        const RowBase base = own.base();
        Accumulators<WIDTH> acc;
        Accumulators<HAS_PARTITIONS ? WIDTH : 8> total;
        acc.clear(), total.clear();
        Raw<FORMAT> raw;
        load_first(raw);
        u32 previous = 0;
#pragma unroll 1
        for (int partition = 0, unit = 0; partition < matrix.num_partitions; partition++) {
            const int end = partition_start(partition + 1, matrix);
            if constexpr (R::units > 1) {
                if ((end - unit) % R::units) {
                    multiply_stage<L::chunks>(acc, raw, previous, base, ++unit == matrix.num_units);
                    wgmma_wait<0>();
                }
            }
#pragma unroll 1
            while (unit < end) {
                unit += R::units;
                multiply_stage<R::chunks>(acc, raw, previous, base, unit == matrix.num_units);
            }
            wgmma_wait<0>();
            if constexpr (HAS_PARTITIONS) {
                total.add(acc);
                acc.clear();
            }
        }
        release(previous);
        find_rows(tiles.next);
        const int row = first_row(tiles.own);
        if constexpr (HAS_PARTITIONS)
            store.store(tiles.own.entry, row, own, total);
        else
            store.store(tiles.own.entry, row, own, acc);
    }
    template <int WIDTH>
    DEVICE void multiply_as_wide(const Tiles& tiles) {
        if constexpr (WIDTH < SIZE)
            if (tiles.own.entry.z > WIDTH) return multiply_as_wide<WIDTH + R::step>(tiles);
        multiply_tile<WIDTH>(tiles);
    }
    // Where the list of tiles was there before the previous kernel began, what it says does not wait for x.
    DEVICE void multiply(const GroupedParams& t) {
        if (t.follows_plan)
            wait_for_previous();
        else
            acquire();
        Tiles tiles(t.tiled);
        find_rows(tiles.own);
        if (!t.follows_plan) wait_for_previous();
        for (; tiles.has_one(); tiles.advance()) multiply_as_wide<R::least>(tiles);
    }
};

KERNEL __launch_bounds__((1 + GROUPS) * WARPGROUP, Ring::blocks)
    matmul_grouped(const __grid_constant__ GroupedParams t) {
    using R = Ring;
    extern __shared__ __align__(1024) u8 aligned[];
    const u32 shared = shared_address(aligned);
    begin_ring(shared + R::full_at, R::stages, 1 + COPIERS, GROUPS * WARPGROUP / 32);
    const int warpgroup = threadIdx.x / WARPGROUP, warp = __shfl_sync(ALL_LANES, threadIdx.x / 32 % 4, 0);
    if (warpgroup == 0) {
        leave_registers<24>();
        if (threadIdx.x % 32 || warp > COPIERS) return;
        // Where the list of tiles was there before the previous kernel began, weights do not wait for x.
        if (warp < COPIERS && !t.follows_plan)
            acquire();
        else
            wait_for_previous();
        copy_tiles(t, shared, warp == COPIERS ? X : warp);
    } else {
        take_registers<R::registers>();
        const int own = warpgroup - 1;
        const TileStore store{t.tiled, shared + R::stores_at + own * R::store_bytes, STORE_BARRIERS + own};
        const u32 weights = shared + R::weights_at + own * R::block_bytes + warp * Layout<FORMAT>::unit_bytes;
        Multiplier multiplier{t.tiled.matrix,           store, shared, weights, own, warp, (int)threadIdx.x % 32,
                              wgmma_descriptor(shared), {}};
        multiplier.multiply(t);
    }
}
