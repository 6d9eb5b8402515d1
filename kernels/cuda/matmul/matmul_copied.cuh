// The tiles of matmul_copied.cu.
#pragma once
#include "../common/bulk.cuh"
#include "../common/wgmma.cuh"

constexpr int WARPGROUP = 128, TOKENS = 128;
constexpr int LEAD_BARRIER = 1;  // a named one
constexpr int LEAD = 1;          // chunks

// Shared memory, in this order: stages of a chunk of x and of weights, at multiples of 1024 bytes; barriers.
struct Ring : CopiedRing<ROWS> {
    using T = CopiedRing<ROWS>;
    static constexpr int x_bytes = TOKENS * 128, weight_bytes = ROWS * 128, stage_bytes = x_bytes + weight_bytes;
    static constexpr int barriers_at = T::stages * stage_bytes;
    static_assert(1024 + barriers_at + 16 * T::stages <= T::num_bytes, "see `copied_ring`");
};

// The tiles of a block, one after the other: all tokens of some outputs, then the next outputs.
struct Tile {
    int index, first_row, first_token;

    DEVICE Tile() : index(blockIdx.x) {}
    // Returns false if there are no more.
    DEVICE bool find(const CopiedParams& p) {
        const int row_tiles = (p.tiled.matrix.num_rows + ROWS - 1) / ROWS;
        const int token_tiles = (p.tiled.num_tokens + TOKENS - 1) / TOKENS;
        if (index >= row_tiles * token_tiles) return false;
        const int row_tile = index / token_tiles;
        first_row = row_tile * ROWS, first_token = (index - row_tile * token_tiles) * TOKENS;
        return true;
    }
    DEVICE void advance() { index += gridDim.x; }
};

// One thread calls it.
DEVICE void copy_tiles(const CopiedParams& p, u32 stages) {
    using R = Ring;
    const u32 full = stages + R::barriers_at, empty = full + 8 * R::stages;
    const int num_chunks = p.tiled.matrix.num_units * p.unit_chunks;
    const i64 step = (i64)p.padded_rows * 128;
    Tile tile;
    auto copy_weights = [&](int chunk, int stage) {
        const int bytes = min(ROWS, p.padded_rows - tile.first_row) * 128;
        barrier_arrive_expecting(full + 8 * stage, R::x_bytes + bytes);
        copy_bulk(stages + stage * R::stage_bytes + R::x_bytes, p.weights + chunk * step + (i64)tile.first_row * 128,
                  bytes, full + 8 * stage);
    };
    int begun = 0;  // chunks whose weights, constants, are copied before the wait
    if (tile.find(p))
        for (; begun < min(R::stages, num_chunks); begun++) copy_weights(begun, begun);
    wait_for_previous();
    RingPlace place;
    for (; tile.find(p); tile.advance()) {
#pragma unroll 1
        for (int chunk = 0; chunk < num_chunks; chunk++) {
            if (--begun < 0) {
                barrier_wait(empty + 8 * place.stage, place.phase ^ 1);
                copy_weights(chunk, place.stage);
            }
            copy_box(stages + place.stage * R::stage_bytes, p.x_map, chunk * 64, tile.first_token,
                     full + 8 * place.stage);
            place.advance(R::stages);
        }
    }
}

// ---- finishing

// What four neighbouring lanes have of four 16-byte vectors, a word of each, to a vector each.
DEVICE void transpose(u32 (&w)[4], int lane) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool second = lane & step;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 &a = w[step == 1 ? 2 * i : i], &b = w[step == 1 ? 2 * i + 1 : i + 2];
            const u32 got = __shfl_xor_sync(~0u, second ? a : b, step);
            (second ? a : b) = got;
        }
    }
}

// Stores sums of a tile, 64 tokens of a warpgroup, which lie in its threads as the tensor core left them: a thread has
// two neighbouring outputs of eight of two tokens.
template <int KIND>
DEVICE void store(const TiledParams& p, const float (&sums)[ROWS / 8][4], int first_row, int first_token) {
    const Epilogue epilogue(p.output, KIND);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, q = lane & 3;
    const int token = first_token + warp * 16 + (lane >> 2);  // and the eighth after it
    const bool exists[2] = {token < p.num_tokens, token + 8 < p.num_tokens};
    auto rows_of = [&](int n, OutputRow(&rows)[2]) {
#pragma unroll
        for (int i = 0; i < 2; i++) rows[i] = OutputRow(p.matrix, 0, first_row + 8 * n + 2 * q + i);
    };
    if constexpr (Epilogue(KIND).is_float()) {
        constexpr int BATCH = 8;
#pragma unroll
        for (int first = 0; first < ROWS / 8; first += BATCH) {
            float2 old[BATCH][2];
            float* to[2];
#pragma unroll
            for (int half = 0; half < 2; half++)
                to[half] = (float*)p.output.out + epilogue.index(token + 8 * half, first_row + 8 * first + 2 * q);
#pragma unroll
            for (int n = 0; n < BATCH; n++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    old[n][half] = make_float2(NO_RESIDUAL, NO_RESIDUAL);
                    if (KIND == ADD_RESIDUAL && first + n < ROWS / 8 && exists[half] &&
                        first_row + 8 * (first + n) < p.matrix.num_rows)
                        old[n][half] = *(const float2*)(to[half] + 8 * n);
                }
#pragma unroll
            for (int n = 0; n < BATCH; n++) {
                if (first + n >= ROWS / 8) break;
                OutputRow rows[2];
                rows_of(first + n, rows);
                const float (&d)[4] = sums[first + n];
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (exists[half] && first_row + 8 * (first + n) < p.matrix.num_rows)
                        *(float2*)(to[half] + 8 * n) =
                            make_float2(epilogue.value(rows[0].of(d[2 * half]), 0.0f, old[n][half].x),
                                        epilogue.value(rows[1].of(d[2 * half + 1]), 0.0f, old[n][half].y));
            }
        }
    } else {
        constexpr int EIGHTS = Epilogue(KIND).is_gated() ? ROWS / 16 : ROWS / 8;  // of outputs
        const int num_outputs = Epilogue(KIND).is_gated() ? p.matrix.num_rows / 2 : p.matrix.num_rows;
        const int first = Epilogue(KIND).is_gated() ? first_row / 2 : first_row;
        u16* const out = (u16*)p.output.out + p.output.column + first;
        // Of eight outputs, those of the thread: of a token, and of the other.
        auto make = [&](int eight, u32& low, u32& high) {
            u32 y[2];
            if constexpr (Epilogue(KIND).is_gated()) {
                OutputRow gates[2], ups[2];
                rows_of(2 * eight, gates), rows_of(2 * eight + 1, ups);
                const float (&gate)[4] = sums[2 * eight], (&up)[4] = sums[2 * eight + 1];
#pragma unroll
                for (int half = 0; half < 2; half++)
                    y[half] = pack_half2(
                        epilogue.value(gates[0].of(gate[2 * half]), ups[0].of(up[2 * half]), NO_RESIDUAL),
                        epilogue.value(gates[1].of(gate[2 * half + 1]), ups[1].of(up[2 * half + 1]), NO_RESIDUAL));
            } else {
                OutputRow rows[2];
                rows_of(eight, rows);
                const float (&d)[4] = sums[eight];
#pragma unroll
                for (int half = 0; half < 2; half++)
                    y[half] = pack_half2(epilogue.value(rows[0].of(d[2 * half]), 0.0f, NO_RESIDUAL),
                                         epilogue.value(rows[1].of(d[2 * half + 1]), 0.0f, NO_RESIDUAL));
            }
            low = y[0], high = y[1];
        };
#pragma unroll
        for (int eight = 0; eight < EIGHTS; eight += 2) {
            u32 w[4];
            make(eight, w[0], w[2]);
            if (eight + 1 < EIGHTS) {
                make(eight + 1 < EIGHTS ? eight + 1 : eight, w[1], w[3]);
                transpose(w, lane);
                const int own = eight + (q & 1), own_token = token + q / 2 * 8;
                if (exists[q / 2] && first + 8 * own < num_outputs)
                    *(uint4*)(out + (i64)own_token * p.output.stride + 8 * own) = make_uint4(w[0], w[1], w[2], w[3]);
            } else if (first + 8 * eight < num_outputs) {
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (exists[half])
                        *(u32*)(out + (i64)(token + 8 * half) * p.output.stride + 8 * eight + 2 * q) = w[2 * half];
            }
        }
    }
}
template <int KIND = 0>
DEVICE void store_as(const TiledParams& p, const float (&sums)[ROWS / 8][4], int first_row, int first_token) {
    if (p.output.epilogue == KIND) store<KIND>(p, sums, first_row, first_token);
    if constexpr (KIND + 1 < NUM_EPILOGUES) store_as<KIND + 1>(p, sums, first_row, first_token);
}

// ---- multiplying

DEVICE void multiply(const CopiedParams& t, u32 stages, int warpgroup) {
    using R = Ring;
    const TiledParams& p = t.tiled;
    const MatrixParams& matrix = p.matrix;
    const int lane = threadIdx.x % 32;
    const u32 full = stages + R::barriers_at, empty = full + 8 * R::stages;
    float acc[ROWS / 8][4], total[ROWS / 8][4];
    RingPlace place;
    u32 previous = 0;  // the barrier of the stage whose products may still run
    auto release = [&](u32 barrier) {
        if (lane == 0) barrier_arrive(barrier);
    };
    // The second warpgroup begins when the first one is some chunks ahead: while one finishes sums the other
    // multiplies.
    int lead = warpgroup == 0 ? LEAD : 0;
    if (warpgroup == 1) synchronise(LEAD_BARRIER, 2 * WARPGROUP);
    for (Tile tile; tile.find(t); tile.advance()) {
        // That acc is cleared, too, tells the compiler that it need not be kept while sums are finished.
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[n][i] = total[n][i] = 0.0f;
        int chunk = 0;
#pragma unroll 1
        for (int partition = 0; partition < matrix.num_partitions; partition++) {
            const int end = partition_start(partition + 1, matrix) * t.unit_chunks;
            bool adds = false;
#pragma unroll 1
            for (; chunk < end; chunk++) {
                const u32 stage = stages + place.stage * R::stage_bytes;
                barrier_wait(full + 8 * place.stage, place.phase);
                const u64 a = wgmma_descriptor(stage + warpgroup * (R::x_bytes / 2));
                const u64 b = wgmma_descriptor(stage + R::x_bytes);
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
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) total[n][i] += acc[n][i];
        }
        store_as(p, total, tile.first_row, tile.first_token + warpgroup * 64);
    }
}

KERNEL __launch_bounds__(3 * WARPGROUP, 1) matmul_copied(const __grid_constant__ CopiedParams p) {
    using R = Ring;
    extern __shared__ u8 unaligned[];
    const u32 stages = (shared_address(unaligned) + 1023) & ~1023u;
    begin_ring(stages + R::barriers_at, R::stages, 1, 2 * WARPGROUP / 32);
    const int warpgroup = threadIdx.x / WARPGROUP;
    if (warpgroup == 0) {
        leave_registers<24>();
        if (threadIdx.x == 0) copy_tiles(p, stages);
    } else {
        take_registers<240>();
        wait_for_previous();
        multiply(p, stages, warpgroup - 1);
    }
}
