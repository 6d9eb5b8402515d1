// y = x W^T on packed weights of one FORMAT, with the operation that follows; see matmul.cuh.
//   matmul_few     up to 8 tokens: x lies in shared memory whole, each warp has a tile of 16 outputs or a segment of one
//   matmul_reduce  adds the segments that several blocks of matmul_tile_N have left
#include "matmul_few.cuh"

// Shared memory: rows of x as float16, `stride` bytes each; the sums of norms, then of tiles; each warp's ring of weights.
KERNEL __launch_bounds__(1024) matmul_few(const __grid_constant__ Params p) {
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
    const u8* matrix = p.weights + expert * p.expert_bytes;
    Weights weights(p, matrix, shared_address(shared) + p.ring_at, segment, tile, tile_step, num_tiles);
    RowBase base = row_base(p, expert, tile, lane);
    // A lane of a tile's first warp finishes every 32nd of its outputs, which are numbered token by token.
    const int rows = is_gated(p.epilogue) ? 8 : 16, num_outputs = rows * num_tokens, columns = (num_tokens + 1) & ~1;
    auto output_at = [&](int i) { return Output(p, expert, first_token + i / rows, tile * 16 + i % rows); };
    Output output = output_at(lane);
    if (p.input == NORMED_ROWS) prefetch_norm(p.norm);
    if (p.beside)
        acquire();
    else if (!p.token_experts)
        wait_for_previous();
    const bool finishes = segment == 0 && lane < num_outputs;
    if (finishes) output.load_residual(p);

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
    for (int block_tile = blockIdx.x * tiles_at_once; block_tile < num_tiles; block_tile += tile_step) {
        float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const bool has_tile = tile < num_tiles;
        if (has_tile) weights.multiply(p, matrix, acc, base, x_address);
        // [2][warps][16 rows][columns]: the other buffer was read before all warps came here.
        float* own = sums + (buffer * (blockDim.x / 32) + warp) * 16 * columns;
        if (2 * (lane & 3) < columns) {
            *(float2*)(own + (lane >> 2) * columns + 2 * (lane & 3)) = make_float2(acc[0], acc[1]);
            *(float2*)(own + (8 + (lane >> 2)) * columns + 2 * (lane & 3)) = make_float2(acc[2], acc[3]);
        }
        if (p.num_segments > 1)
            __syncthreads();
        else
            __syncwarp();
        if (finishes && has_tile) {
            for (int i = lane;;) {
                const float* from = own + i % rows * columns + i / rows;
                float sum = from[0], up_sum = from[8 * columns];
                for (int other = 1; other < p.num_segments; other++)
                    sum += from[other * 16 * columns], up_sum += from[(other * 16 + 8) * columns];
                output.finish(p, sum, up_sum);
                if ((i += 32) >= num_outputs) break;
                output = output_at(i);
                output.load_residual(p);
            }
        }
        buffer ^= 1, tile += tile_step;
        base = row_base(p, expert, tile, lane);
        output = output_at(lane);
        if (finishes) output.load_residual(p);
    }
    if (p.beside) wait_for_previous();
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
    Output out(p, 0, token, row);
    out.load_residual(p);
    out.finish(p, sum, up);
}
