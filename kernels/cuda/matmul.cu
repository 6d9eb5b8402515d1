// y = x W^T on packed weights of one FORMAT, with the operation that follows; see matmul.cuh.
//   matmul_few     up to 8 tokens: x lies in shared memory whole, each warp has a tile of 16 outputs or a segment of one
//   matmul_reduce  adds the segments that several blocks of matmul_tile_N have left
#include "matmul_few.cuh"

// Shared memory: rows of x as float16, `stride` bytes each; the sums of norms or of segments; each warp's ring of weights.
KERNEL __launch_bounds__(512) matmul_few(const __grid_constant__ Params p) {
    let_next_start();
    extern __shared__ __align__(16) u8 shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int num_tiles = (p.num_rows + 15) / 16;
    const int segment = warp % p.num_segments;  // warps of a tile lie together
    const int tiles_at_once = blockDim.x / 32 / p.num_segments, tile_step = gridDim.x * tiles_at_once;
    const int first_token = p.token_experts ? blockIdx.y : 0;
    const int num_tokens = p.token_experts ? 1 : p.num_tokens;
    int tile = blockIdx.x * tiles_at_once + warp / p.num_segments;
    int expert = 0;
    if (p.token_experts) {  // which weights to read is known only after the router
        wait_for_previous();
        expert = p.token_experts[first_token];
    }
    Weights weights(p, expert, shared_address(shared) + p.ring_at, segment, tile, tile_step, num_tiles);
    RowBase base = row_base(p, expert, tile, lane);
    if (p.input == NORMED_ROWS) prefetch_norm(p.norm);
    if (!p.token_experts) wait_for_previous();

    // Rows 16 bytes apart from a multiple of 128, so that ldmatrix meets no bank twice.
    const int stride = p.num_chunks * 128 + 16;
    float* sums = (float*)(shared + num_tokens * stride);
    for (int token = 0; token < num_tokens; token++)
        for (int at = p.width * 2 + threadIdx.x * 16; at < stride; at += blockDim.x * 16)
            *(uint4*)(shared + token * stride + at) = make_uint4(0, 0, 0, 0);
    auto source_of = [&](int token) -> i64 { return p.x_rows ? p.x_rows[first_token + token] : first_token + token; };
    if (p.input == NORMED_ROWS) {
        normalise_rows(
            p.norm, num_tokens, sums, [&](int token) { return (const float*)p.x + source_of(token) * p.width; },
            [&](int token, int column, float4 n) {
                *(uint2*)(shared + token * stride + column * 2) = make_uint2(pack_half2(n.x, n.y), pack_half2(n.z, n.w));
            });
    } else {
        for (int token = 0; token < num_tokens; token++) {
            const u8* from = (const u8*)p.x + source_of(token) * p.width * 2;
#pragma unroll 4
            for (int at = threadIdx.x * 16; at < p.width * 2; at += blockDim.x * 16)
                *(uint4*)(shared + token * stride + at) = *(const uint4*)(from + at);
        }
    }
    __syncthreads();

    // ldmatrix: lane l addresses row l % 8 of matrix l / 8. Columns of the product that are no tokens repeat the last.
    const u32 x_address = shared_address(shared) + min(lane & 7, num_tokens - 1) * stride + (lane >> 3) * 16;
    int buffer = 0;
    // Warps of a block have their tiles at the same time: where segments meet, all come to the barrier equally often.
#pragma unroll 1
    for (int block_tile = blockIdx.x * tiles_at_once; block_tile < num_tiles; block_tile += tile_step, tile += tile_step) {
        float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const bool has_tile = tile < num_tiles;
        if (has_tile) weights.multiply(acc, base, x_address, lane);
        base = row_base(p, expert, tile + tile_step, lane);
        if (p.num_segments > 1) {  // [2][warps][32 lanes][4]
            float4* all = (float4*)sums + buffer * blockDim.x;
            all[threadIdx.x] = make_float4(acc[0], acc[1], acc[2], acc[3]);
            __syncthreads();  // the other buffer was read before all warps came here
            buffer ^= 1;
            if (segment) continue;
            for (int other = 1; other < p.num_segments; other++) {
                const float4 v = all[threadIdx.x + 32 * other];
                acc[0] += v.x, acc[1] += v.y, acc[2] += v.z, acc[3] += v.w;
            }
        }
        if (has_tile) finish_fragment(p, expert, first_token, num_tokens, tile, lane, acc);
    }
}

KERNEL __launch_bounds__(256) matmul_reduce(const __grid_constant__ Params p) {
    let_next_start();
    wait_for_previous();
    const int outputs = is_gated(p.epilogue) ? p.num_rows / 2 : p.num_rows;
    const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    if (i >= (i64)p.num_tokens * outputs) return;
    const int token = i / outputs, output = i % outputs;
    const int row = is_gated(p.epilogue) ? output / 8 * 16 + output % 8 : output;
    const i64 stride = (i64)p.num_tokens * p.num_rows;
    const float* from = p.partials + (i64)token * p.num_rows + row;
    float sum = from[0], up = is_gated(p.epilogue) ? from[8] : 0.0f;
    for (int segment = 1; segment < p.num_segments; segment++) {
        sum += from[segment * stride];
        if (is_gated(p.epilogue)) up += from[segment * stride + 8];
    }
    finish(p, 0, token, row, sum, up);
}
