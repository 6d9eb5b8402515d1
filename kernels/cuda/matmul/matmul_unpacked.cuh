// The tiles of matmul_unpacked.cu.
#pragma once
#include "../common/bulk.cuh"
#include "../common/wgmma.cuh"

constexpr int WARPGROUP = 128;
constexpr int SLICE_STRIDE = 64 + 4;                 // floats of a token: no bank conflicts
constexpr int LEAD_BARRIER = 1, SLICE_BARRIERS = 2;  // named barriers; of the latter each warpgroup has one
constexpr int LEAD = 1;                              // chunks; more leave the copies no stage to be ahead with

// Shared memory, in this order: stages of a chunk of x and of weights, at multiples of 1024 bytes; sums of a slice of
// each warpgroup; barriers.
template <int TOKENS>
struct Ring : UnpackedRing<TOKENS> {
    using T = UnpackedRing<TOKENS>;
    static constexpr int x_bytes = TOKENS * 128, weight_bytes = 128 * 128, stage_bytes = x_bytes + weight_bytes;
    static constexpr int slices_at = T::stages * stage_bytes, slice_bytes = SLICE_TOKENS * SLICE_STRIDE * 4;
    static constexpr int barriers_at = slices_at + 2 * slice_bytes;
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
};

DEVICE void synchronise(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
DEVICE void arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- copying

// One thread calls it.
template <int TOKENS>
DEVICE void copy_tiles(const UnpackedParams& p, u32 stages) {
    using R = Ring<TOKENS>;
    const u32 full = stages + R::barriers_at, empty = full + 8 * R::stages;
    const int num_chunks = p.tiled.matrix.num_units * p.unit_chunks;
    RingPlace place;
    for (Tile tile; tile.find(p, TOKENS); tile.advance()) {
        const u8* weights = p.weights + (i64)tile.row_tile * num_chunks * R::weight_bytes;
#pragma unroll 1
        for (int chunk = 0; chunk < num_chunks; chunk++, weights += R::weight_bytes) {
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

// Finishes sums of a slice: those of 64 rows of a warpgroup, [SLICE_TOKENS][SLICE_STRIDE] in shared memory.
struct SliceStore {
    const TiledParams& p;
    const Tile& tile;
    const float* slice;
    int first_row, first_token;  // of the matrix, and of the tile

    template <int KIND>
    DEVICE void store() const {
        constexpr bool is_gated = Epilogue(KIND).is_gated();
        constexpr int lanes = is_gated ? 8 : 16, at_once = WARPGROUP / lanes;  // of a token; tokens
        const Epilogue epilogue(p.output, KIND);
        const int thread = threadIdx.x % WARPGROUP, lane = thread % lanes;
        const int local = is_gated ? lane / 2 * 16 + lane % 2 * 4 : lane * 4, row = first_row + local;
        if (row >= p.matrix.num_rows) return;
        u8* out = (u8*)epilogue.address(epilogue.index(tile.first_token + first_token + thread / lanes, row));
        const i64 step = (i64)p.output.stride * at_once * (epilogue.is_float() ? 4 : 2);
        const int num_tokens = tile.num_tokens - first_token;
        float4 residual[SLICE_TOKENS / at_once];
        if constexpr (KIND == ADD_RESIDUAL) {
#pragma unroll
            for (int i = 0; i < SLICE_TOKENS / at_once; i++)
                if (thread / lanes + i * at_once < num_tokens) residual[i] = *(const float4*)(out + i * step);
        }
        OutputRow own_rows[4], up_rows[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            own_rows[j] = OutputRow(p.matrix, 0, row + j);
            if (is_gated) up_rows[j] = OutputRow(p.matrix, 0, row + 8 + j);
        }
#pragma unroll
        for (int i = 0; i < SLICE_TOKENS / at_once; i++) {
            const int token = thread / lanes + i * at_once;
            if (token >= num_tokens) break;
            const float4 sums = *(const float4*)(slice + token * SLICE_STRIDE + local);
            const float own[4] = {sums.x, sums.y, sums.z, sums.w};
            float up[4] = {};
            if constexpr (is_gated) {
                const float4 ups = *(const float4*)(slice + token * SLICE_STRIDE + local + 8);
                up[0] = ups.x, up[1] = ups.y, up[2] = ups.z, up[3] = ups.w;
            }
            const float old[4] = {
                KIND == ADD_RESIDUAL ? residual[i].x : NO_RESIDUAL, KIND == ADD_RESIDUAL ? residual[i].y : NO_RESIDUAL,
                KIND == ADD_RESIDUAL ? residual[i].z : NO_RESIDUAL, KIND == ADD_RESIDUAL ? residual[i].w : NO_RESIDUAL};
            float y[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                y[j] = epilogue.value(own_rows[j].of(own[j]), is_gated ? up_rows[j].of(up[j]) : 0.0f, old[j]);
            if (epilogue.is_float())
                *(float4*)(out + i * step) = {y[0], y[1], y[2], y[3]};
            else
                *(uint2*)(out + i * step) = {pack_half2(y[0], y[1]), pack_half2(y[2], y[3])};
        }
    }
    template <int KIND = 0>
    DEVICE void store_as(int kind) const {
        if (kind == KIND) store<KIND>();
        if constexpr (KIND + 1 < NUM_EPILOGUES) store_as<KIND + 1>(kind);
    }
};

// ---- multiplying

template <int TOKENS>
DEVICE void multiply(const UnpackedParams& t, u32 stages, u8* shared, int warpgroup) {
    using R = Ring<TOKENS>;
    constexpr bool sums_partitions = TOKENS <= SUMMING_TOKENS;
    const TiledParams& p = t.tiled;
    const MatrixParams& matrix = p.matrix;
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const u32 full = stages + R::barriers_at, empty = full + 8 * R::stages;
    float* const slice = (float*)(shared + R::slices_at + warpgroup * R::slice_bytes);
    float* const own_sums = slice + 2 * (lane & 3) * SLICE_STRIDE + warp * 16 + (lane >> 2);
    float acc[TOKENS / 8][4];
    float total[sums_partitions ? TOKENS / 8 : 1][4];
    RingPlace place;
    u32 previous = 0;  // the barrier of the stage whose products may still run
    auto release = [&](u32 barrier) {
        if (lane == 0) barrier_arrive(barrier);
    };
    // The second warpgroup begins when the first one is some chunks ahead: while one finishes sums the other
    // multiplies.
    int lead = warpgroup == 0 ? LEAD : 0;
    if (warpgroup == 1) synchronise(LEAD_BARRIER, 2 * WARPGROUP);
    for (Tile tile; tile.find(t, TOKENS); tile.advance()) {
        // That acc is cleared, too, tells the compiler that it need not be kept while sums are finished.
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                acc[n][i] = 0.0f;
                if constexpr (sums_partitions) total[n][i] = 0.0f;
            }
        int chunk = 0;
#pragma unroll 1
        for (int partition = 0; partition < matrix.num_partitions; partition++) {
            const int end = partition_start(partition + 1, matrix) * t.unit_chunks;
            bool adds = false;
#pragma unroll 1
            for (; chunk < end; chunk++) {
                const u32 stage = stages + place.stage * R::stage_bytes;
                barrier_wait(full + 8 * place.stage, place.phase);
                const u64 a = wgmma_descriptor(stage + R::x_bytes + warpgroup * (R::weight_bytes / 2));
                const u64 b = wgmma_descriptor(stage);
                wgmma_fence();
#pragma unroll
                for (int s = 0; s < 4; s++) wgmma_64(acc, a + 2 * s, b + 2 * s, adds || s > 0);
                wgmma_commit();
                if (adds) {
                    wgmma_wait<1>();
                    release(previous);
                }
                adds = true;
                previous = empty + 8 * place.stage;
                place.advance(R::stages);
                if (lead > 0 && --lead == 0) arrive(LEAD_BARRIER, 2 * WARPGROUP);
            }
            wgmma_wait<0>();
            release(previous);
            if constexpr (sums_partitions) {
#pragma unroll
                for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) total[n][i] += acc[n][i];
            }
        }
        const auto& sums = [&]() -> auto& {
            if constexpr (sums_partitions)
                return total;
            else
                return acc;
        }();
        const int first_row = tile.row_tile * 128 + warpgroup * 64;
#pragma unroll 1
        for (int first = 0; first < tile.num_tokens; first += SLICE_TOKENS) {
#pragma unroll
            for (int n = 0; n < TOKENS / 8; n++)
                if (n * 8 / SLICE_TOKENS == first / SLICE_TOKENS) {
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        own_sums[(8 * n % SLICE_TOKENS + (i & 1)) * SLICE_STRIDE + 8 * (i >> 1)] = sums[n][i];
                }
            synchronise(SLICE_BARRIERS + warpgroup, WARPGROUP);
            SliceStore{p, tile, slice, first_row, first}.store_as(p.output.epilogue);
            synchronise(SLICE_BARRIERS + warpgroup, WARPGROUP);
        }
    }
    if (lead > 0) arrive(LEAD_BARRIER, 2 * WARPGROUP);
}

template <int TOKENS>
DEVICE void matmul_unpacked(const UnpackedParams& p) {
    using R = Ring<TOKENS>;
    extern __shared__ u8 unaligned[];
    const u32 stages = (shared_address(unaligned) + 1023) & ~1023u;
    u8* const shared = unaligned + (stages - shared_address(unaligned));
    if (threadIdx.x == 0) {
        for (int i = 0; i < R::stages; i++) {
            barrier_init(stages + R::barriers_at + 8 * i, 1);
            barrier_init(stages + R::barriers_at + 8 * (R::stages + i), 2 * WARPGROUP / 32);
        }
        publish_barriers();
    }
    __syncthreads();
    wait_for_previous();
    const int warpgroup = threadIdx.x / WARPGROUP;
    if (warpgroup == 0) {
        leave_registers<24>();
        if (threadIdx.x == 0) copy_tiles<TOKENS>(p, stages);
    } else {
        take_registers<240>();
        multiply<TOKENS>(p, stages, shared, warpgroup - 1);
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
