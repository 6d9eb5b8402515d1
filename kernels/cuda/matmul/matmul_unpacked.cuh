// The tiles of matmul_unpacked.cu.
#pragma once
#include "../common/bulk.cuh"
#include "../common/wgmma.cuh"

constexpr int WARPGROUP = 128;
constexpr int LEAD_BARRIER = 1, STORE_BARRIERS = 2;  // named barriers; of the latter each warpgroup has one
constexpr int LEAD = 1;                              // chunks; more leave the copies no stage to be ahead with
constexpr int BEGUN = 2;                             // chunks of a tile under way while the one before is finished

// Shared memory, in this order: stages of a chunk of x and of weights, at multiples of 1024 bytes; outputs of each
// warpgroup on their way; barriers.
template <int TOKENS>
struct Ring : UnpackedRing<TOKENS> {
    using T = UnpackedRing<TOKENS>;
    static constexpr int x_bytes = TOKENS * 128, weight_bytes = 128 * 128, stage_bytes = x_bytes + weight_bytes;
    static constexpr int stores_at = T::stages * stage_bytes;
    static constexpr int barriers_at = stores_at + 2 * STORE_BYTES;
    static_assert(1024 + barriers_at + 16 * T::stages <= T::num_bytes, "see `unpacked_ring`");
};

// The tiles of a block, one after the other. Tiles of outputs come in groups whose weights stay in the L2 cache while
// all tokens are multiplied by them.
struct Tile {
    int index, row_tile, first_token, num_tokens;

    DEVICE Tile() : index(blockIdx.x) {}
    // Returns false if there are no more.
    DEVICE bool find(const UnpackedParams& p, int tokens) {
        const int row_tiles = (p.tiled.matrix.num_rows + 127) / 128;
        const int token_tiles = (p.tiled.num_tokens + tokens - 1) / tokens;
        if (index >= row_tiles * token_tiles) return false;
        const int first = index / (p.group_tiles * token_tiles) * p.group_tiles;
        const int in_group = min(p.group_tiles, row_tiles - first);
        const int left = index - first * token_tiles, token_tile = left / in_group;
        row_tile = first + left - token_tile * in_group;
        first_token = token_tile * tokens, num_tokens = min(tokens, p.tiled.num_tokens - first_token);
        return true;
    }
    DEVICE void advance() { index += gridDim.x; }
    // The one before, of this block.
    DEVICE Tile before(const UnpackedParams& p, int tokens) const {
        Tile tile;
        tile.index = index - gridDim.x;
        tile.find(p, tokens);
        return tile;
    }
};

// ---- copying

// One thread calls it.
template <int TOKENS>
DEVICE void copy_tiles(const UnpackedParams& p, u32 stages) {
    using R = Ring<TOKENS>;
    const u32 full = stages + R::barriers_at, empty = full + 8 * R::stages;
    const int num_chunks = p.tiled.matrix.num_units * p.unit_chunks;
    const i64 step = (i64)((p.tiled.matrix.num_rows + 127) / 128) * R::weight_bytes;
    RingPlace place;
    for (Tile tile; tile.find(p, TOKENS); tile.advance()) {
        const u8* weights = p.weights + (i64)tile.row_tile * R::weight_bytes;
#pragma unroll 1
        for (int chunk = 0; chunk < num_chunks; chunk++, weights += step) {
            const u32 stage = stages + place.stage * R::stage_bytes, barrier = full + 8 * place.stage;
            barrier_wait(empty + 8 * place.stage, place.phase ^ 1);
            barrier_arrive_expecting(barrier, R::stage_bytes);
            copy_bulk(stage + R::x_bytes, weights, R::weight_bytes, barrier);
            copy_box(stage, p.x_map, chunk * 64, tile.first_token, barrier);
            place.advance(R::stages);
        }
    }
}

// ---- finishing

// Sums of a tile, 64 rows of a warpgroup, lie in its threads as the tensor core left them. What becomes of them is put
// into shared memory, slice after slice, and stored from there by the copy engine, as much at once as there is room
// for: each time takes a fence and two barriers. Tokens that the tile does not have are left out by the copy engine.
// All threads of the warpgroup call what is here.
struct TileStore {
    const UnpackedParams& t;
    u32 buffers;  // STORE_BYTES
    int barrier;  // of the warpgroup

    // `rows`: the two that a thread has.
    template <int TOKENS>
    DEVICE void store(const float (&sums)[TOKENS / 8][4], const OutputRow (&rows)[2], int first_row,
                      const Tile& tile) const {
        constexpr bool is_gated = Epilogue(EPILOGUE).is_gated(), is_float = Epilogue(EPILOGUE).is_float();
        constexpr int slice_bytes = SLICE_TOKENS * (is_gated ? 64 : is_float ? 256 : 128);
        constexpr int most = STORE_BYTES / slice_bytes;
        // What takes few instructions is spelled out for all slices: then they need not wait for each other.
        constexpr int unrolled =
            EPILOGUE == SWIGLU || EPILOGUE == CLAMPED_SWIGLU || EPILOGUE == STORE_HALF ? TOKENS / SLICE_TOKENS : 1;
        const int column = is_gated ? gated_column(first_row) : first_row;
#pragma unroll unrolled
        for (int first = 0; first < TOKENS; first += SLICE_TOKENS) {
            float slice[SLICE_TOKENS / 8][4];
#pragma unroll
            for (int n = 0; n < TOKENS / 8; n++)
                if (n * 8 / SLICE_TOKENS == first / SLICE_TOKENS) {
#pragma unroll
                    for (int i = 0; i < 4; i++) slice[n % (SLICE_TOKENS / 8)][i] = sums[n][i];
                }
            const int number = first / SLICE_TOKENS % most;
            if (number == 0) make_room();
            put(slice, rows, buffers + number * slice_bytes);
            if (number + 1 < most && first + SLICE_TOKENS < TOKENS) continue;
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            synchronise(barrier, WARPGROUP);
            if (threadIdx.x % WARPGROUP == 0) {
                for (int i = 0; i <= number; i++) {
                    const u32 from = buffers + i * slice_bytes;
                    const int token = tile.first_token + first + (i - number) * SLICE_TOKENS;
                    store_box(t.out_map, column, token, from);
                    if (is_float) store_box(t.out_map, column + 32, token, from + slice_bytes / 2);
                }
                asm volatile("cp.async.bulk.commit_group;" ::: "memory");
            }
        }
    }
    // Until the copy engine has read all. The thread that stores waits, as only its own stores count.
    DEVICE void wait() const { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

   private:
    DEVICE void make_room() const {
        if (threadIdx.x % WARPGROUP == 0) wait();
        synchronise(barrier, WARPGROUP);
    }
    DEVICE void put(const float (&sums)[SLICE_TOKENS / 8][4], const OutputRow (&rows)[2], u32 place) const {
        const Epilogue epilogue(t.tiled.output, EPILOGUE);
        const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        if constexpr (Epilogue(EPILOGUE).is_gated()) {
            u32 y[4];  // of 8 tokens each
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float two[2];
#pragma unroll
                for (int i = 0; i < 2; i++)
                    two[i] = epilogue.value(rows[0].of(sums[n][i]), rows[1].of(sums[n][2 + i]), NO_RESIDUAL);
                y[n] = pack_half2(two[0], two[1]);
            }
            store_matrices_transposed(y, place + lane * 64 + ((warp ^ (lane >> 1 & 3)) << 4));
        } else if constexpr (!Epilogue(EPILOGUE).is_float()) {
#pragma unroll
            for (int n = 0; n < 4; n += 2) {
                u32 y[4];  // rows 0..7 and 8..15 of 8 tokens, and of 8 more
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float* two = sums[n + j / 2] + j % 2 * 2;
                    y[j] = pack_half2(epilogue.value(rows[j % 2].of(two[0]), 0.0f, NO_RESIDUAL),
                                      epilogue.value(rows[j % 2].of(two[1]), 0.0f, NO_RESIDUAL));
                }
                const int token = 8 * n + (lane & 7) + (lane >> 4 << 3);
                store_matrices_transposed(y, place + token * 128 + (((2 * warp + (lane >> 3 & 1)) ^ (lane & 7)) << 4));
            }
        } else {
            const int g = lane >> 2;
            const u32 box = place + warp / 2 * (SLICE_TOKENS * 128) + (g & 3) * 4;
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int token = 8 * n + 2 * (lane & 3) + (i & 1), chunk = warp % 2 * 4 + g / 4 + i / 2 * 2;
                    const float y = epilogue.value(rows[i / 2].of(sums[n][i]), 0.0f, NO_RESIDUAL);
                    asm volatile("st.shared.f32 [%0], %1;"
                                 :
                                 : "r"(box + token * 128 + ((chunk ^ (token & 7)) << 4)), "f"(y)
                                 : "memory");
                }
        }
    }
};

// Adds sums of a tile, 64 rows of a warpgroup, to the residual stream, where a thread has 4 rows of every eighth token.
// By the copy engine that would take longer: the L2 cache adds a number at a time. `shared`: float [2][16][STRIDE]. All
// threads of the warpgroup call it.
template <int TOKENS>
DEVICE void add_to_residual(const TiledParams& p, const Tile& tile, const float (&sums)[TOKENS / 8][4], int first_row,
                            u32 shared, int barrier) {
    constexpr int STRIDE = 64 + 4, AT_ONCE = WARPGROUP / 16;  // floats of a token: no bank conflicts; tokens
    const Epilogue epilogue(p.output, ADD_RESIDUAL);
    const int thread = threadIdx.x % WARPGROUP, warp = thread / 32, lane = thread % 32;
    const int row = first_row + thread % 16 * 4, own_token = thread / 16;
    const bool exists = row < p.matrix.num_rows;
    const i64 step = (i64)p.output.stride * AT_ONCE;
    float* out = (float*)epilogue.address(epilogue.index(tile.first_token + own_token, row));
    const float* next = out;
    int num_loads = exists ? (tile.num_tokens - own_token + AT_ONCE - 1) / AT_ONCE : 0, num_stores = num_loads;
    constexpr int AHEAD = TOKENS > 160 ? 3 : 8;  // loads on their way; for more there are no registers
    float4 residual[AHEAD];
    auto load = [&](int index) {
        if (num_loads-- > 0) residual[index % AHEAD] = *(const float4*)next;
        next += step;
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) load(i);
    const OutputRow rows[4] = {OutputRow(p.matrix, 0, row), OutputRow(p.matrix, 0, row + 1),
                               OutputRow(p.matrix, 0, row + 2), OutputRow(p.matrix, 0, row + 3)};
    const u32 from = shared + (own_token * STRIDE + thread % 16 * 4) * 4;
    const u32 to = shared + (2 * (lane & 3) * STRIDE + warp * 16 + (lane >> 2)) * 4;
#pragma unroll
    for (int first = 0; first < TOKENS; first += 16) {
        const u32 buffer = first / 16 % 2 * (16 * STRIDE * 4);
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                asm volatile("st.shared.f32 [%0], %1;"
                             :
                             : "r"(to + buffer + ((8 * n + i % 2) * STRIDE + i / 2 * 8) * 4),
                               "f"(sums[first / 8 + n][i])
                             : "memory");
        synchronise(barrier, WARPGROUP);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int index = first / AT_ONCE + i;
            float4 y;
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(y.x), "=f"(y.y), "=f"(y.z), "=f"(y.w)
                         : "r"(from + buffer + i * (AT_ONCE * STRIDE * 4))
                         : "memory");
            const float4 old = residual[index % AHEAD];
            y = {epilogue.value(rows[0].of(y.x), 0.0f, old.x), epilogue.value(rows[1].of(y.y), 0.0f, old.y),
                 epilogue.value(rows[2].of(y.z), 0.0f, old.z), epilogue.value(rows[3].of(y.w), 0.0f, old.w)};
            load(index + AHEAD);
            if (num_stores-- > 0) *(float4*)out = y;
            out += step;
        }
    }
}

// ---- multiplying

template <int N>
DEVICE void clear(float (&sums)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0.0f;
}

template <int TOKENS>
DEVICE void multiply(const UnpackedParams& t, u32 stages, int warpgroup) {
    using R = Ring<TOKENS>;
    constexpr bool sums_partitions = TOKENS <= SUMMING_TOKENS;
    const TiledParams& p = t.tiled;
    const MatrixParams& matrix = p.matrix;
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const u32 full = stages + R::barriers_at, empty = full + 8 * R::stages;
    const TileStore stores{t, stages + R::stores_at + warpgroup * STORE_BYTES, STORE_BARRIERS + warpgroup};
    float acc[TOKENS / 8][4];
    float total[sums_partitions ? TOKENS / 8 : 1][4];
    RingPlace place;
    u32 running = 0;  // the barrier of the stage whose products may still run
    // The second warpgroup begins when the first one is some chunks ahead: while one adds a partition's sums the other
    // multiplies.
    int lead = warpgroup == 0 ? LEAD : 0;
    if (warpgroup == 1) synchronise(LEAD_BARRIER, 2 * WARPGROUP);
    // The next chunk's products begin. Returns the barrier of its stage.
    auto begin = [&](bool adds) {
        const u32 stage = stages + place.stage * R::stage_bytes, barrier = empty + 8 * place.stage;
        barrier_wait(full + 8 * place.stage, place.phase);
        const u64 a = wgmma_descriptor(stage + R::x_bytes + warpgroup * (R::weight_bytes / 2));
        const u64 b = wgmma_descriptor(stage);
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < 4; s++) wgmma_64(acc, a + 2 * s, b + 2 * s, adds || s > 0);
        wgmma_commit();
        place.advance(R::stages);
        if (lead > 0 && --lead == 0) arrive(LEAD_BARRIER, 2 * WARPGROUP);
        return barrier;
    };
    auto release = [&](u32 barrier) {
        if (lane == 0) barrier_arrive(barrier);
    };
    auto finish = [&](const Tile& tile, const float (&sums)[TOKENS / 8][4]) {
        const int first_row = tile.row_tile * 128 + warpgroup * 64, row = first_row + warp * 16 + (lane >> 2);
        if constexpr (EPILOGUE == ADD_RESIDUAL) {
            add_to_residual<TOKENS>(p, tile, sums, first_row, stores.buffers, stores.barrier);
        } else {
            const OutputRow rows[2] = {OutputRow(matrix, 0, row), OutputRow(matrix, 0, row + 8)};
            stores.store<TOKENS>(sums, rows, first_row, tile);
        }
    };
    clear(acc);
    clear(total);
    Tile tile;
    for (; tile.find(t, TOKENS); tile.advance()) {
        // The chunk during whose products the tile before is finished, if there is one.
        const int finish_at =
            tile.index == blockIdx.x ? -1 : min(BEGUN, partition_start(1, matrix) * t.unit_chunks) - 1;
        int chunk = 0;
#pragma unroll 1
        for (int partition = 0; partition < matrix.num_partitions; partition++) {
            const int end = partition_start(partition + 1, matrix) * t.unit_chunks;
            bool adds = false;
#pragma unroll 1
            for (; chunk < end; chunk++) {
                const u32 next = begin(adds);
                if constexpr (sums_partitions) {
                    if (chunk == finish_at) {
                        finish(tile.before(t, TOKENS), total);
                        clear(total);
                    }
                }
                if (adds) {
                    wgmma_wait<1>();
                    release(running);
                }
                adds = true;
                running = next;
            }
            wgmma_wait<0>();
            release(running);
            if constexpr (sums_partitions) {
#pragma unroll
                for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) total[n][i] += acc[n][i];
            }
        }
        if constexpr (!sums_partitions) finish(tile, acc);
    }
    if constexpr (sums_partitions) finish(tile.before(t, TOKENS), total);
    stores.wait();
    if (lead > 0) arrive(LEAD_BARRIER, 2 * WARPGROUP);
}

template <int TOKENS>
DEVICE void matmul_unpacked(const UnpackedParams& p) {
    using R = Ring<TOKENS>;
    extern __shared__ u8 unaligned[];
    const u32 stages = (shared_address(unaligned) + 1023) & ~1023u;
    begin_ring(stages + R::barriers_at, R::stages, 1, 2 * WARPGROUP / 32);
    wait_for_previous();
    const int warpgroup = threadIdx.x / WARPGROUP;
    if (warpgroup == 0) {
        leave_registers<24>();
        if (threadIdx.x == 0) copy_tiles<TOKENS>(p, stages);
    } else {
        take_registers<240>();
        multiply<TOKENS>(p, stages, warpgroup - 1);
    }
}

#define UNPACKED_KERNEL(TOKENS)                                                                                     \
    KERNEL __launch_bounds__(3 * WARPGROUP, 1) matmul_unpacked_##TOKENS(const __grid_constant__ UnpackedParams p) { \
        matmul_unpacked<TOKENS>(p);                                                                                 \
    }
UNPACKED_KERNEL(128)
UNPACKED_KERNEL(160)
UNPACKED_KERNEL(192)
UNPACKED_KERNEL(256)
