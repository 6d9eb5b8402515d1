// Products of one token, or of one expert of it: what the kernels of matmul.cu named so do.
#pragma once
#include "../moe/experts.cuh"
#include "matmul_few.cuh"

enum LoneInput { LONE_HALF, LONE_NORMED, LONE_ROUTED };

// What becomes of one row of a lone token's tile, found before its sum is.
struct LoneOutput {
    OutputRow row;
    void* to;
    int epilogue;
    float residual = -0.0f;  // which changes no bit of a sum; where one is added it is to be loaded
    bool exists;

    DEVICE LoneOutput(const Params& p, int expert, int pair, int tile)
        : row(p, expert, tile * 16 + threadIdx.x % 16), epilogue(p.epilogue) {
        const int lane = threadIdx.x % 32;
        int column = tile * 16 + lane % 16;
        exists = lane < (is_gated(p.epilogue) ? 8 : 16) && column < p.num_rows;
        if (is_gated(p.epilogue)) column = gated_column(column);
        const int bytes = p.epilogue == STORE_FLOAT || p.epilogue == ADD_RESIDUAL ? 4 : 2;
        to = (u8*)p.out + ((i64)pair * p.out_stride + p.out_column + column) * bytes;
    }
    DEVICE void compute_now() { ::compute_now(to), ::compute_now(epilogue), row.compute_now(); }
    DEVICE void load_residual() {
        if (exists && epilogue == ADD_RESIDUAL) residual = *(const float*)to;
    }
    // All lanes of a warp. With gated activations lane l < 8 has a gate, lane l + 8 its up projection.
    DEVICE void finish(const Params& p, float sum) const {
        const float y = row.of(sum), up = __shfl_down_sync(ALL_LANES, y, 8);
        if (!exists) return;
        if (epilogue == STORE_FLOAT || epilogue == ADD_RESIDUAL)
            *(float*)to = __fadd_rn(residual, y);
        else
            *(u16*)to = to_half(is_gated(epilogue) ? gated(p, y, up) : epilogue == GELU ? gelu(y) : y);
    }
};

// Sums of a tile's segments change hands in shared memory: a row holds them in fours, of which those that are missing
// are -0, which changes no bit. Rows are an odd number of fours apart, and so on different banks.
DEVICE int segment_stride(const Params& p) { return ((p.num_segments + 3) / 4 | 1) * 4; }

DEVICE float sum_of_row(const float* row, int num_segments) {
    float4 fours[MAX_SEGMENTS / 4];
#pragma unroll
    for (int i = 0; i < MAX_SEGMENTS / 4; i++)
        fours[i] = 4 * i < num_segments ? ((const float4*)row)[i] : make_float4(-0.0f, -0.0f, -0.0f, -0.0f);
    float sum = -0.0f;
#pragma unroll
    for (int i = 0; i < MAX_SEGMENTS / 4; i++) sum = sum + fours[i].x + fours[i].y + fours[i].z + fours[i].w;
    return sum;
}

// One token, or one expert of it. What can be done ahead of x is done ahead of it: the rest is a chain of instructions
// that wait for each other, and takes as long as it has links. Shared memory: x as float16; the parts of a norm and its
// weights; the sums of tiles; each warp's ring of weights.
template <LoneInput INPUT>
DEVICE void matmul_lone(const Params& p) {
    const int lane = threadIdx.x % 32, at = threadIdx.x * 16, x_bytes = p.width * 2;
    const Place place(p);
    float* const parts = (float*)(shared + p.num_chunks * 128);
    float* const norm_weights = parts + 2 * NORM_PARTS;
    // [2][tiles_at_once][16 rows][segment_stride]
    float* const sums = norm_weights + (INPUT == LONE_NORMED ? p.width : 0);
    const int stride = segment_stride(p), buffer_floats = p.tiles_at_once * 16 * stride;
    const u8* x = (const u8*)p.x;
    const u8* matrix = p.weights;
    int expert = 0, pair = 0, tile = place.tile;
    uint4 piece;  // of x: this thread's first
    NormRow row;
    if constexpr (INPUT == LONE_ROUTED) {
        pair = blockIdx.z * p.num_used + blockIdx.y;
        x += (i64)(p.x_row_of_pair ? pair : blockIdx.z) * x_bytes;
        wait_for_previous();
        if (at < x_bytes) piece = *(const uint4*)(x + at);
        expert = expert_of_rank(p.router_logits + (i64)blockIdx.z * p.num_experts, p.num_experts, blockIdx.y);
        matrix += expert * p.expert_bytes;
    }
    if constexpr (INPUT == LONE_NORMED) row.copy_weights(p.norm, norm_weights);  // in the first group of copies
    Weights weights(p, matrix, shared_address(shared) + p.ring_at, place.segment, tile, place.tile_step,
                    place.num_tiles);
    RowBase base = row_base(p, expert, tile, lane);
    LoneOutput output(p, expert, pair, tile);
    if (at < p.num_chunks * 128 - x_bytes) *(uint4*)(shared + x_bytes + at) = uint4{};
    for (int i = threadIdx.x; i < 2 * buffer_floats; i += blockDim.x) sums[i] = -0.0f;
    float* own = sums + (place.local_tile * 16 + (lane >> 2)) * stride + place.segment;
    const float* sum_row = sums + (place.local_tile * 16 + lane % 16) * stride;
    if constexpr (INPUT != LONE_ROUTED) {
        weights.make_ready(base, tile < place.num_tiles);
        output.compute_now();
        wait_for_x(p);
        if (p.x_rows) x += (i64)p.x_rows[0] * p.width * (INPUT == LONE_NORMED ? 4 : 2);
        if constexpr (INPUT == LONE_NORMED)
            row.load(p.norm, (const float*)x);
        else if (at < x_bytes)
            piece = *(const uint4*)(x + at);
        if (place.segment == 0) output.load_residual();
    }
    if constexpr (INPUT == LONE_NORMED) {
        row.normalise(p.norm, norm_weights, parts,
                      [&](int column, float4 n) { *(uint2*)(shared + column * 2) = pack_quad(n); });
    } else {
        if (at < x_bytes) *(uint4*)(shared + at) = piece;
#pragma unroll 1
        for (int more = at + blockDim.x * 16; more < x_bytes; more += blockDim.x * 16)
            *(uint4*)(shared + more) = *(const uint4*)(x + more);
    }
    __syncthreads();

    const u32 x_address = shared_address(shared) + (lane >> 3) * 16;  // eight times the same row
    // Warps of a block have their tiles at the same time: where segments meet, all come to the barrier equally often.
    int next_tile = place.block_tile + place.tile_step, other_buffer = buffer_floats;
#pragma unroll 1
    while (true) {
        float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const bool has_tile = tile < place.num_tiles;
        if (has_tile) {
            weights.multiply(p, matrix, acc, base, x_address, tile + place.tile_step >= place.num_tiles);
            if ((lane & 3) == 0) own[0] = acc[0], own[8 * stride] = acc[2];
        }
        wait_for_segments(p);
        if (place.segment == 0 && has_tile) output.finish(p, sum_of_row(sum_row, p.num_segments));
        if (next_tile >= place.num_tiles) break;
        // The other buffer was read before all warps came here.
        own += other_buffer, sum_row += other_buffer, other_buffer = -other_buffer;
        next_tile += place.tile_step, tile += place.tile_step;
        base = row_base(p, expert, tile, lane);
        output = LoneOutput(p, expert, pair, tile);
        if (place.segment == 0) output.load_residual();
    }
    if (INPUT != LONE_ROUTED && p.beside) wait_for_previous();
}
