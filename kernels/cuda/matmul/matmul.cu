// y = x W^T on packed weights of one FORMAT, with the operation that follows; see matmul.cuh.
//   matmul_lone         one token: x lies in shared memory, a warp has a tile of 16 outputs or a segment of one
//   matmul_lone_normed  the same, and the norm before it
//   matmul_lone_routed  the same for each token's experts that a router has chosen
//   matmul_few          two to four tokens
//   matmul_reduce       adds the segments that several blocks of matmul_tile_N have left
#include "matmul_lone.cuh"

// The sums of an output's segments, in order, `stride` floats apart, AT_ONCE of them fetched together.
template <int AT_ONCE, typename Stride>
DEVICE float sum_of_segments(const Params& p, const float* from, Stride stride) {
    float sum = from[0];
#pragma unroll 1
    for (int segment = 1; segment < p.num_segments; segment += AT_ONCE) {
        float more[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (segment + i < p.num_segments) more[i] = from[(segment + i) * stride];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (segment + i < p.num_segments) sum += more[i];
    }
    return sum;
}

// Shared memory: rows of x as float16, `stride` bytes each; the sums of tiles; each warp's ring of weights.
KERNEL __launch_bounds__(32 * MAX_FEW_WARPS) matmul_few(const __grid_constant__ Params p) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Place place(p);
    const int stride = p.num_chunks * 128 + 16;  // of rows of x: so that ldmatrix meets no bank twice
    int tile = place.tile;
    Weights weights(p, p.weights, shared_address(shared) + p.ring_at, place.segment, tile, place.tile_step,
                    place.num_tiles);
    RowBase base = row_base(p, 0, tile, lane);
    // A lane of a tile's first warp finishes every 32nd of its outputs, which are numbered token by token.
    const int rows_log2 = is_gated(p.epilogue) ? 3 : 4, rows_mask = (1 << rows_log2) - 1;
    const int num_outputs = p.num_tokens << rows_log2, columns = (p.num_tokens + 1) & ~1;
    auto output_at = [&](int i) { return Output(p, 0, i >> rows_log2, tile * 16 + (i & rows_mask)); };
    Output output = output_at(lane);
    wait_for_x(p);
    const bool finishes = place.segment == 0 && lane < num_outputs;
    if (finishes) output.load_residual(p);
    const int row_pieces = stride / 16;
#pragma unroll 4
    for (int piece = threadIdx.x; piece < p.num_tokens * row_pieces; piece += blockDim.x) {
        const int token = piece / row_pieces, at = (piece - token * row_pieces) * 16;
        const i64 source = p.x_rows ? p.x_rows[token] : token;
        const u8* row = (const u8*)p.x + source * p.width * 2;
        *(uint4*)(shared + piece * 16) = at < p.width * 2 ? *(const uint4*)(row + at) : uint4{};
    }
    __syncthreads();

    // ldmatrix: lane l addresses row l % 8 of matrix l / 8. Columns of the product that are no tokens repeat the last.
    const u32 x_address = shared_address(shared) + min(lane & 7, p.num_tokens - 1) * stride + (lane >> 3) * 16;
    float* sums = (float*)(shared + p.num_tokens * stride);  // [2][warps][16 rows][columns]
    // Warps of a block have their tiles at the same time: where segments meet, all come to the barrier equally often.
    int next_tile = place.block_tile + place.tile_step;
#pragma unroll 1
    for (int buffer = 0;; buffer ^= 1) {
        float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const bool has_tile = tile < place.num_tiles;
        if (has_tile) weights.multiply(p, p.weights, acc, base, x_address, tile + place.tile_step >= place.num_tiles);
        // The other buffer was read before all warps came here.
        float* own = sums + (buffer * (blockDim.x / 32) + warp) * 16 * columns;
        if (2 * (lane & 3) < columns) {
            float* to = own + (lane >> 2) * columns + 2 * (lane & 3);
            *(float2*)to = make_float2(acc[0], acc[1]);
            *(float2*)(to + 8 * columns) = make_float2(acc[2], acc[3]);
        }
        wait_for_segments(p);
        if (finishes && has_tile) {
#pragma unroll 1
            for (int i = lane;;) {
                const float* from = own + (i & rows_mask) * columns + (i >> rows_log2);
                const float sum = sum_of_segments<8>(p, from, 16 * columns);
                const float up_sum =
                    is_gated(p.epilogue) ? sum_of_segments<8>(p, from + 8 * columns, 16 * columns) : 0.0f;
                output.finish(p, sum, up_sum);
                if ((i += 32) >= num_outputs) break;
                output = output_at(i);
                output.load_residual(p);
            }
        }
        if (next_tile >= place.num_tiles) break;
        next_tile += place.tile_step, tile += place.tile_step;
        base = row_base(p, 0, tile, lane);
        output = output_at(lane);
        if (finishes) output.load_residual(p);
    }
    if (p.beside) wait_for_previous();
}

KERNEL __launch_bounds__(32 * MAX_FEW_WARPS) matmul_lone(const __grid_constant__ Params p) {
    matmul_lone<LONE_HALF>(p);
}

// x is float32 and normed here; at least NORM_PARTS warps.
KERNEL __launch_bounds__(32 * MAX_FEW_WARPS) matmul_lone_normed(const __grid_constant__ Params p) {
    matmul_lone<LONE_NORMED>(p);
}

// Grid: blocks, ranks, tokens.
KERNEL __launch_bounds__(32 * MAX_FEW_WARPS) matmul_lone_routed(const __grid_constant__ Params p) {
    matmul_lone<LONE_ROUTED>(p);
}

KERNEL __launch_bounds__(256, 8) matmul_reduce(const __grid_constant__ Params p) {
    wait_for_previous();
    const int outputs = is_gated(p.epilogue) ? p.num_rows / 2 : p.num_rows;
    const i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    if (i >= (i64)p.num_tokens * outputs) return;
    const int token = i / outputs, output = i % outputs;
    const int row = is_gated(p.epilogue) ? output / 8 * 16 + output % 8 : output;
    const i64 stride = (i64)p.num_tokens * p.num_rows;
    const float* from = p.partials + (i64)token * p.num_rows + row;
    Output out(p, 0, token, row);
    out.load_residual(p);
    const float sum = sum_of_segments<4>(p, from, stride);
    out.finish(p, sum, is_gated(p.epilogue) ? sum_of_segments<4>(p, from + 8, stride) : 0.0f);
}
