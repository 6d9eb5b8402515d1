// Products of one token, or of one expert of it: matmul_gemv, _normed and _routed.
#pragma once
#include "../moe/experts.cuh"
#include "matmul_streamed.cuh"

enum GemvInput { GEMV_HALF, GEMV_NORMED, GEMV_ROUTED };

// One output of the token's tile, each row of which has a lane of its own.
struct GemvOutput {
    OutputRow row;
    Destination destination;

    DEVICE explicit GemvOutput(const SmallBatchParams& p) : destination(p.output) {}
    DEVICE GemvOutput(const SmallBatchParams& p, int expert, int pair, int tile)
        : row(p.matrix, expert, tile * 16 + threadIdx.x % 16),
          destination(p.output, pair, tile * 16 + threadIdx.x % 16, has_row(p, tile)) {}
    DEVICE void compute_now() { ::compute_now(destination.to), ::compute_now(destination.epilogue.kind); }
    // All lanes of a warp call it. With gated activations lane l < 8 has a gate, lane l + 8 its up projection.
    DEVICE void finish(float sum) const {
        const float y = row.of(sum), up = __shfl_down_sync(ALL_LANES, y, 8);
        destination.store(y, up);
    }
    // The same of activations, float16 as they are, times `share`.
    DEVICE void finish_shared(float sum, float share) const {
        const float y = row.of(sum), up = __shfl_down_sync(ALL_LANES, y, 8);
        if (!destination.exists) return;
        const u16 activated = to_half(destination.epilogue.value(y, up, NO_RESIDUAL));
        *(u16*)destination.to = to_half(from_half(activated) * share);
    }

   private:
    DEVICE static bool has_row(const SmallBatchParams& p, int tile) {
        const int lane = threadIdx.x % 32;
        return lane < (Epilogue(p.output).is_gated() ? 8 : 16) && tile * 16 + lane % 16 < p.matrix.num_rows;
    }
};

// Warps exchange the sums of a tile's partitions in shared memory: a row holds them in fours, of which those that are
// missing are -0, which changes no bit. Rows are an odd number of fours apart, and so on different banks. `row` is
// where in shared memory a row lies.
DEVICE int partition_stride(const MatrixParams& matrix) { return ((matrix.num_partitions + 3) / 4 | 1) * 4; }

template <int FOURS>
DEVICE float sum_of_fours(const float4* from) {
    float4 fours[FOURS];
#pragma unroll
    for (int i = 0; i < FOURS; i++) fours[i] = from[i];
    float sum = -0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++) sum = sum + fours[i].x + fours[i].y + fours[i].z + fours[i].w;
    return sum;
}
DEVICE float sum_of_row(u32 row, int num_partitions) {
    static_assert(MAX_PARTITIONS <= 20, "five fours");
    const float4* from = (const float4*)(shared + row);
    if (num_partitions <= 4) return sum_of_fours<1>(from);
    if (num_partitions <= 8) return sum_of_fours<2>(from);
    if (num_partitions <= 12) return sum_of_fours<3>(from);
    return num_partitions <= 16 ? sum_of_fours<4>(from) : sum_of_fours<5>(from);
}

// Puts those there that are missing.
DEVICE void fill_row(u32 row, int num_partitions) {
    for (int i = num_partitions; i % 4; i++) ((float*)(shared + row))[i] = -0.0f;
}

// Puts a warp's sums to two rows of each four lanes, the first at `to`.
DEVICE void put_sums(u32 to, int row_bytes, const float (&acc)[4]) {
    if (threadIdx.x & 3) return;
    *(float*)(shared + to) = acc[0], *(float*)(shared + to + 8 * row_bytes) = acc[2];
}

// All vectors of x are on their way at once.
DEVICE void copy_x(u8* to, const u8* x, int num_bytes) {
#pragma unroll 4
    for (int at = threadIdx.x * 16; at < num_bytes; at += blockDim.x * 16)
        copy_words<16>(shared_address(to) + at, x + at);
    copy_commit();
}

// One token, or one expert of it. First weights are asked for, then x: nothing that waits for memory comes before, as
// the blocks that begin last have no other kernel to hide it behind. The rest is done while x is on its way. Shared
// memory: x as float16; a norm's sums and its weights; the sums of tiles; each warp's ring of weights, or their scales.
template <GemvInput INPUT, int PLACES = Layout<FORMAT>::streamed_places>
DEVICE void matmul_gemv(const SmallBatchParams& p) {
    if (INPUT != GEMV_ROUTED && p.flags & HAS_WAITING_WARP && threadIdx.x >= blockDim.x - 32) wait_for_previous();
    const MatrixParams& matrix = p.matrix;
    const int lane = threadIdx.x % 32, at = threadIdx.x * 16, x_bytes = matrix.width * 2;
    const Place place(p);
    const bool picks_row = INPUT != GEMV_ROUTED && p.flags & PICKS_ROWS;
    if (picks_row && threadIdx.x == 0) prefetch(p.x_rows);
    load_grid();
    float* const norm_sums = (float*)(shared + matrix.num_chunks * 128);
    float* const norm_weights = norm_sums + 2 * NORM_PARTITIONS;
    // [2][tiles_at_once][16 rows][partition_stride]
    const u32 sums = (u8*)(norm_weights + (INPUT == GEMV_NORMED ? matrix.width : 0)) - shared;
    const int row_bytes = 4 * partition_stride(matrix), buffer_bytes = p.tiles_at_once * 16 * row_bytes;
    const u8* x = (const u8*)p.x;
    const u8* packed = matrix.packed;
    int expert = 0, pair = 0, tile = place.tile;
    NormRow row;
    // Of a token's experts the last one may be shared by all tokens: then one more than it has chosen.
    const bool is_shared = INPUT == GEMV_ROUTED && blockIdx.y == p.routing.num_used;
    float share = 1.0f;
    if constexpr (INPUT == GEMV_ROUTED) {
        pair = blockIdx.z * gridDim.y + blockIdx.y;
        x += (i64)(p.routing.x_row_of_pair ? pair : blockIdx.z) * x_bytes;
        if (is_shared) {
            packed = p.routing.shared_packed;
        } else {
            int* chosen = p.routing.experts + blockIdx.z * p.routing.num_used + blockIdx.y;
            if (p.routing.is_first) {  // the previous kernel writes logits and x
                wait_for_previous();
                copy_x(shared, x, x_bytes);
                expert = expert_of_rank(p.routing.router_logits + (i64)blockIdx.z * p.routing.num_experts,
                                        p.routing.num_experts, blockIdx.y);
                if (blockIdx.x == 0 && threadIdx.x == 0) *chosen = expert;
            } else {
                do expert = load_relaxed(chosen);
                while (expert < 0);  // until the token's first product has begun
            }
            packed += expert * matrix.expert_bytes;
        }
    }
    // A fence waits for all loads that are under way: before those of weights, where these are not waited for first.
    const bool has_begun = STREAMED && INPUT != GEMV_ROUTED && p.overlaps_previous();
    if (has_begun) begin_overlapped();
    if constexpr (INPUT == GEMV_NORMED && !STREAMED) row.copy_weights(p.norm, norm_weights);  // in the first group
    typename OneTokenWeights<STREAMED, PLACES>::type weights(matrix, packed, shared_address(shared) + p.ring_at,
                                                             place.partition, tile, place.tile_step, place.num_tiles);
    if constexpr (INPUT == GEMV_NORMED && STREAMED) row.copy_weights(p.norm, norm_weights), copy_commit();
    weights.begin(matrix, packed);
    const RowBase base = row_base(matrix, expert, tile, lane);
    const bool finishes = place.partition == 0 && place.local_tile < p.tiles_at_once;  // sums of the tile
    GemvOutput output(p);
    u32 own = sums + (place.local_tile * 16 + (lane >> 2)) * row_bytes + place.partition * 4, sum_row = 0;
    if (finishes) {
        output = GemvOutput(p, expert, pair, tile);
        output.compute_now();
        sum_row = sums + (place.local_tile * 16 + lane % 16) * row_bytes;
        fill_row(sum_row, matrix.num_partitions), fill_row(sum_row + buffer_bytes, matrix.num_partitions);
    }
    u32 x_address = shared_address(shared) + weights.x_at() + (lane >> 3) * 16;  // eight times the same row
    compute_now(own), compute_now(x_address);
    if (at < matrix.num_chunks * 128 - x_bytes) *(uint4*)(shared + x_bytes + at) = uint4{};
    if constexpr (INPUT == GEMV_ROUTED) {
        if (is_shared || !p.routing.is_first) {
            wait_for_previous();
            copy_x(shared, x, x_bytes);
        }
        if (is_shared) share = p.routing.shares[blockIdx.z];
    } else {
        if constexpr (!STREAMED) {
            weights.make_ready(Factors(base), tile < place.num_tiles);
            wait_for_x(p);
        } else if (!has_begun) {
            wait_for_previous();
        }
        if (picks_row) x += (i64)p.x_rows[0] * matrix.width * (INPUT == GEMV_NORMED ? 4 : 2);
        if constexpr (INPUT == GEMV_NORMED)
            row.load((const float*)x, matrix.width);
        else
            copy_x(shared, x, x_bytes);
        if (finishes) output.destination.load_residual();
    }
    Factors rows(base);
    rows.compute_now();
    if constexpr (INPUT == GEMV_NORMED) {
        const float factor = row.centre(p.norm, norm_sums);
        if constexpr (STREAMED) {
            weights.prefetch_next();
            copy_wait<0>();  // the norm's weights; else `make_ready` has waited
        }
        row.scale(p.norm, norm_weights, factor,
                  [&](int column, float4 n) { *(uint2*)(shared + column * 2) = pack_quad(n); });
    } else {
        copy_wait<0>();
    }
    __syncthreads();

    // All warps of a block go through their tiles in step, and so come to the barrier of the partitions equally often.
    int next_tile = place.block_tile + place.tile_step, other_buffer = buffer_bytes;
#pragma unroll 1
    while (true) {
        float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const bool has_tile = tile < place.num_tiles;
        if (has_tile) {
            weights.multiply(matrix, packed, acc, rows, x_address, tile + place.tile_step >= place.num_tiles);
            put_sums(own, row_bytes, acc);
        }
        wait_for_partitions(p);
        if (finishes && has_tile) {
            const float sum = sum_of_row(sum_row, matrix.num_partitions);
            if (is_shared)
                output.finish_shared(sum, share);
            else
                output.finish(sum);
        }
        if (next_tile >= place.num_tiles) break;
        // The other buffer was read before all warps came here.
        own += other_buffer, sum_row += other_buffer, other_buffer = -other_buffer;
        next_tile += place.tile_step, tile += place.tile_step;
        rows = Factors(row_base(matrix, expert, tile, lane));
        if (!finishes) continue;
        output = GemvOutput(p, expert, pair, tile);
        output.destination.load_residual();
    }
    if (INPUT != GEMV_ROUTED && p.overlaps_previous()) wait_for_previous();
}
