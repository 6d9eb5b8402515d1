// y = x W^T on packed weights of one FORMAT, with the operation that follows; see matmul.cuh.
//   matmul_few         up to 8 tokens: x lies in shared memory whole, a warp has a tile of 16 outputs or a segment of one
//   matmul_few_routed  each token through the experts that a router has chosen
//   matmul_reduce      adds the segments that several blocks of matmul_tile_N have left
#include "experts.cuh"
#include "matmul_few.cuh"

DEVICE void copy_row(u8* to, const u8* from, int num_bytes) {
#pragma unroll 1
    for (int at = threadIdx.x * 16; at < num_bytes; at += blockDim.x * 16) *(uint4*)(to + at) = *(const uint4*)(from + at);
}

// Shared memory: rows of x as float16, `stride` bytes each; the sums of norms, then of tiles; the norm's weights; each
// warp's ring of weights. What a block does once is kept short, not fast: its instructions come from far away.
template <bool ROUTED>
DEVICE void matmul_few(const Params& p) {
    extern __shared__ __align__(16) u8 shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int num_tiles = (p.num_rows + 15) / 16, tile_step = gridDim.x * p.tiles_at_once;
    const int local_tile = warp * p.segment_reciprocal >> RECIPROCAL_BITS;
    const int segment = warp - local_tile * p.num_segments;  // warps of a tile lie together
    const int stride = p.num_chunks * 128 + 16;  // of rows of x: so that ldmatrix meets no bank twice
    const int num_tokens = ROUTED ? 1 : p.num_tokens;
    int tile = blockIdx.x * p.tiles_at_once + local_tile;
    int expert = 0, first_token = 0;
    if constexpr (ROUTED) {
        first_token = blockIdx.z * p.num_used + blockIdx.y;
        wait_for_previous();
        const i64 row = p.x_row_of_pair ? first_token : blockIdx.z;
        copy_row(shared, (const u8*)p.x + row * p.width * 2, p.width * 2);
        expert = expert_of_rank(p.router_logits + (i64)blockIdx.z * p.num_experts, p.num_experts, blockIdx.y);
    }
    const u8* matrix = p.weights + expert * p.expert_bytes;
    float* norm_weights = (float*)(shared + p.norm_at);
    if (!ROUTED && p.input == NORMED_ROWS)
#pragma unroll 1
        for (int at = threadIdx.x * 4; at < p.width; at += blockDim.x * 4)
            copy_words<16>(shared_address(norm_weights + at), p.norm.weight + at);
    copy_commit();
    Weights weights(p, matrix, shared_address(shared) + p.ring_at, segment, tile, tile_step, num_tiles);
    RowBase base = row_base(p, expert, tile, lane);
    // A lane of a tile's first warp finishes every 32nd of its outputs, which are numbered token by token.
    const int rows_log2 = is_gated(p.epilogue) ? 3 : 4, rows_mask = (1 << rows_log2) - 1;
    const int num_outputs = num_tokens << rows_log2, columns = (num_tokens + 1) & ~1;
    auto output_at = [&](int i) { return Output(p, expert, first_token + (i >> rows_log2), tile * 16 + (i & rows_mask)); };
    Output output = output_at(lane);
    if constexpr (!ROUTED) {
        if (p.beside) {
            start_next();
            acquire();
        } else {
            wait_for_previous();
        }
    }
    const bool finishes = segment == 0 && lane < num_outputs;
    if (finishes) output.load_residual(p);

    float* sums = (float*)(shared + num_tokens * stride);
#pragma unroll 1
    for (int token = 0; token < num_tokens; token++) {
        const int at = p.width * 2 + threadIdx.x * 16;
        if (at < stride) *(uint4*)(shared + token * stride + at) = make_uint4(0, 0, 0, 0);
    }
    if constexpr (!ROUTED) {
        auto source_of = [&](int token) -> i64 { return p.x_rows ? p.x_rows[token] : token; };
        if (p.input == NORMED_ROWS) {
            copy_wait<Weights::STAGES>();  // for the norm's weights
            normalise_rows(
                p.norm, norm_weights, num_tokens, sums,
                [&](int token) { return (const float*)p.x + source_of(token) * p.width; },
                [&](int token, int column, float4 n) {
                    *(uint2*)(shared + token * stride + column * 2) =
                        make_uint2(pack_half2(n.x, n.y), pack_half2(n.z, n.w));
                });
        } else {
#pragma unroll 1
            for (int token = 0; token < num_tokens; token++)
                copy_row(shared + token * stride, (const u8*)p.x + source_of(token) * p.width * 2, p.width * 2);
        }
    }
    __syncthreads();

    // ldmatrix: lane l addresses row l % 8 of matrix l / 8. Columns of the product that are no tokens repeat the last.
    const u32 x_address = shared_address(shared) + min(lane & 7, num_tokens - 1) * stride + (lane >> 3) * 16;
    int buffer = 0;
    // Warps of a block have their tiles at the same time: where segments meet, all come to the barrier equally often.
#pragma unroll 1
    for (int block_tile = blockIdx.x * p.tiles_at_once;; buffer ^= 1) {
        float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const bool has_tile = tile < num_tiles;
        if (has_tile) weights.multiply(p, matrix, acc, base, x_address);
        // [2][warps][16 rows][columns]: the other buffer was read before all warps came here.
        float* own = sums + (buffer * (blockDim.x / 32) + warp) * 16 * columns;
        if (2 * (lane & 3) < columns) {
            float* to = own + (lane >> 2) * columns + 2 * (lane & 3);
            *(float2*)to = make_float2(acc[0], acc[1]);
            *(float2*)(to + 8 * columns) = make_float2(acc[2], acc[3]);
        }
        if (p.num_segments > 1)
            __syncthreads();
        else
            __syncwarp();
        if (finishes && has_tile) {
#pragma unroll 1
            for (int i = lane;;) {
                const float* from = own + (i & rows_mask) * columns + (i >> rows_log2);
                float sum = from[0], up_sum = from[8 * columns];
#pragma unroll 1
                for (int other = 1; other < p.num_segments; other += 3) {
                    float more[3], more_up[3];
#pragma unroll
                    for (int j = 0; j < 3; j++)
                        if (other + j < p.num_segments) {
                            more[j] = from[(other + j) * 16 * columns];
                            more_up[j] = from[((other + j) * 16 + 8) * columns];
                        }
#pragma unroll
                    for (int j = 0; j < 3; j++)
                        if (other + j < p.num_segments) sum += more[j], up_sum += more_up[j];
                }
                output.finish(p, sum, up_sum);
                if ((i += 32) >= num_outputs) break;
                output = output_at(i);
                output.load_residual(p);
            }
        }
        if ((block_tile += tile_step) >= num_tiles) break;
        tile += tile_step;
        base = row_base(p, expert, tile, lane);
        output = output_at(lane);
        if (finishes) output.load_residual(p);
    }
    if (!ROUTED && p.beside) wait_for_previous();
}

KERNEL __launch_bounds__(768) matmul_few(const __grid_constant__ Params p) { matmul_few<false>(p); }

// Grid: blocks, ranks, tokens.
KERNEL __launch_bounds__(768) matmul_few_routed(const __grid_constant__ Params p) { matmul_few<true>(p); }

KERNEL __launch_bounds__(256) matmul_reduce(const __grid_constant__ Params p) {
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
