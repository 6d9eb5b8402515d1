// Products of one token, or of one expert of it: matmul_gemv, _normed and _routed.
#pragma once
#include "../moe/experts.cuh"
#include "matmul_streamed.cuh"

enum GemvInput { GEMV_HALF, GEMV_NORMED, GEMV_ROUTED };

// One output of the token's tile, each row of which has a lane of its own.
struct GemvOutput {
    OutputRow row;
    Destination destination;

    DEVICE GemvOutput(const SmallBatchParams& p, int expert, int pair, int tile)
        : row(p.matrix, expert, tile * 16 + threadIdx.x % 16),
          destination(p.output, pair, tile * 16 + threadIdx.x % 16, has_row(p, tile)) {}
    DEVICE void compute_now() {
        ::compute_now(destination.to), ::compute_now(destination.epilogue.kind), row.compute_now();
    }
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
// missing are -0, which changes no bit. Rows are an odd number of fours apart, and so on different banks.
DEVICE int partition_stride(const MatrixParams& matrix) { return ((matrix.num_partitions + 3) / 4 | 1) * 4; }

DEVICE float sum_of_row(const float* row, int num_partitions) {
    float4 fours[MAX_PARTITIONS / 4];
#pragma unroll
    for (int i = 0; i < MAX_PARTITIONS / 4; i++)
        fours[i] = 4 * i < num_partitions ? ((const float4*)row)[i] : make_float4(-0.0f, -0.0f, -0.0f, -0.0f);
    float sum = -0.0f;
#pragma unroll
    for (int i = 0; i < MAX_PARTITIONS / 4; i++) sum = sum + fours[i].x + fours[i].y + fours[i].z + fours[i].w;
    return sum;
}

// All vectors of x are on their way at once.
DEVICE void copy_x(u8* to, const u8* x, int num_bytes) {
#pragma unroll 4
    for (int at = threadIdx.x * 16; at < num_bytes; at += blockDim.x * 16)
        copy_words<16>(shared_address(to) + at, x + at);
    copy_commit();
}

// One token, or one expert of it. What does not need x is done before x is there: what remains is a chain of dependent
// instructions, whose latencies add up. Shared memory: x as float16; a norm's sums and its weights; the sums of tiles;
// each warp's ring of weights, or their scales.
template <GemvInput INPUT>
DEVICE void matmul_gemv(const SmallBatchParams& p) {
    const MatrixParams& matrix = p.matrix;
    const int lane = threadIdx.x % 32, at = threadIdx.x * 16, x_bytes = matrix.width * 2;
    const Place place(p);
    if (INPUT != GEMV_ROUTED && p.x_rows && threadIdx.x == 0) prefetch(p.x_rows);
    load_grid();
    float* const norm_sums = (float*)(shared + matrix.num_chunks * 128);
    float* const norm_weights = norm_sums + 2 * NORM_PARTITIONS;
    // [2][tiles_at_once][16 rows][partition_stride]
    float* const sums = norm_weights + (INPUT == GEMV_NORMED ? matrix.width : 0);
    const int stride = partition_stride(matrix), buffer_floats = p.tiles_at_once * 16 * stride;
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
            // The router's logits are what the previous kernel writes, or were there before that one began.
            if (p.routing.is_first)
                wait_for_previous();
            else
                acquire();
            expert = expert_of_rank(p.routing.router_logits + (i64)blockIdx.z * p.routing.num_experts,
                                    p.routing.num_experts, blockIdx.y);
            if (p.routing.is_first && blockIdx.x == 0 && threadIdx.x == 0)
                p.routing.experts[blockIdx.z * p.routing.num_used + blockIdx.y] = expert;
            packed += expert * matrix.expert_bytes;
            if (p.routing.is_first) copy_x(shared, x, x_bytes);
        }
    }
    // A fence waits for all loads that are under way: before those of weights, where these are not waited for first.
    const bool has_begun = STREAMED && INPUT != GEMV_ROUTED && p.overlaps_previous;
    if (has_begun) begin_overlapped();
    if constexpr (INPUT == GEMV_NORMED) row.copy_weights(p.norm, norm_weights);  // in the first group of copies
    GemvWeights weights(matrix, packed, shared_address(shared) + p.ring_at, place.partition, tile, place.tile_step,
                        place.num_tiles);
    RowBase base = row_base(matrix, expert, tile, lane);
    GemvOutput output(p, expert, pair, tile);
    if (at < matrix.num_chunks * 128 - x_bytes) *(uint4*)(shared + x_bytes + at) = uint4{};
    for (int i = threadIdx.x; i < 2 * buffer_floats; i += blockDim.x) sums[i] = -0.0f;
    float* own = sums + (place.local_tile * 16 + (lane >> 2)) * stride + place.partition;
    const float* sum_row = sums + (place.local_tile * 16 + lane % 16) * stride;
    if constexpr (INPUT == GEMV_ROUTED) {
        if (is_shared || !p.routing.is_first) {
            wait_for_previous();
            copy_x(shared, x, x_bytes);
        }
        if (is_shared) share = p.routing.shares[blockIdx.z];
    } else {
        weights.make_ready(base, tile < place.num_tiles);
        output.compute_now();
        if (!has_begun) wait_for_x(p);
        if (p.x_rows) x += (i64)p.x_rows[0] * matrix.width * (INPUT == GEMV_NORMED ? 4 : 2);
        if constexpr (INPUT == GEMV_NORMED)
            row.load(p.norm, (const float*)x);
        else
            copy_x(shared, x, x_bytes);
        if (place.partition == 0) output.destination.load_residual();
    }
    if constexpr (INPUT == GEMV_NORMED) {
        if constexpr (STREAMED) copy_commit(), copy_wait<0>();  // the norm's weights; else `make_ready` has waited
        row.normalise(p.norm, norm_weights, norm_sums,
                      [&](int column, float4 n) { *(uint2*)(shared + column * 2) = pack_quad(n); });
    } else {
        copy_wait<0>();
    }
    __syncthreads();

    const u32 x_address = shared_address(shared) + (lane >> 3) * 16;  // eight times the same row
    // All warps of a block go through their tiles in step, and so come to the barrier of the partitions equally often.
    int next_tile = place.block_tile + place.tile_step, other_buffer = buffer_floats;
#pragma unroll 1
    while (true) {
        float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const bool has_tile = tile < place.num_tiles;
        if (has_tile) {
            weights.multiply(matrix, packed, acc, base, x_address, tile + place.tile_step >= place.num_tiles);
            if ((lane & 3) == 0) own[0] = acc[0], own[8 * stride] = acc[2];
        }
        wait_for_partitions(p);
        if (place.partition == 0 && has_tile) {
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
        base = row_base(matrix, expert, tile, lane);
        output = GemvOutput(p, expert, pair, tile);
        if (place.partition == 0) output.destination.load_residual();
    }
    if (INPUT != GEMV_ROUTED && p.overlaps_previous) wait_for_previous();
}
