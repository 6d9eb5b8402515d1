// y = x W^T on packed weights of one FORMAT, with the operation that follows; see matmul.cuh.
//   matmul_lone         one token: x lies in shared memory, a warp has a tile of 16 outputs or a segment of one
//   matmul_lone_normed  the same, and the norm before it
//   matmul_lone_routed  the same for each token's experts that a router has chosen
//   matmul_few          up to 8 tokens
//   matmul_reduce       adds the segments that several blocks of matmul_tile_N have left
#include "experts.cuh"
#include "matmul_few.cuh"

extern __shared__ __align__(16) u8 shared[];

// Where a warp of a block is, of those that share its tiles: the warps of a tile lie together, one for each segment.
struct Place {
    int local_tile, segment;
    int block_tile, tile;  // the block's first, and the warp's; none if it is but `num_tiles`
    int tile_step, num_tiles;

    DEVICE explicit Place(const Params& p) : tile_step(gridDim.x * p.tiles_at_once), num_tiles((p.num_rows + 15) / 16) {
        const int warp = threadIdx.x / 32;
        local_tile = warp * p.segment_reciprocal >> RECIPROCAL_BITS;
        segment = warp - local_tile * p.num_segments;
        block_tile = blockIdx.x * p.tiles_at_once;
        tile = local_tile < p.tiles_at_once ? block_tile + local_tile : num_tiles;
    }
};

// From one warp to the one that adds its tile up.
DEVICE void wait_for_segments(const Params& p) {
    if (p.num_segments > 1)
        __syncthreads();
    else
        __syncwarp();
}

// The sums of a tile's segments, in order, `stride` floats apart.
DEVICE float sum_of_segments(const Params& p, const float* from, int stride) {
    constexpr int AT_ONCE = 8;
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
KERNEL __launch_bounds__(640) matmul_few(const __grid_constant__ Params p) {
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
    if (p.beside) {
        start_next();
        acquire();
    } else {
        wait_for_previous();
    }
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
                const float sum = sum_of_segments(p, from, 16 * columns);
                const float up_sum = is_gated(p.epilogue) ? sum_of_segments(p, from + 8 * columns, 16 * columns) : 0.0f;
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

// Sums of a tile's segments change hands in shared memory: a row holds them in fours, of which those that are missing are
// -0, which changes no bit. Rows are an odd number of fours apart, and so on different banks.
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
        if (p.beside) {
            start_next();
            acquire();
        } else {
            wait_for_previous();
        }
        if (p.x_rows) x += (i64)p.x_rows[0] * p.width * (INPUT == LONE_NORMED ? 4 : 2);
        if constexpr (INPUT == LONE_NORMED)
            row.load(p.norm, (const float*)x);
        else if (at < x_bytes)
            piece = *(const uint4*)(x + at);
        if (place.segment == 0) output.load_residual();
    }
    if constexpr (INPUT == LONE_NORMED) {
        row.normalise(p.norm, norm_weights, parts, [&](int column, float4 n) {
            *(uint2*)(shared + column * 2) = make_uint2(pack_half2(n.x, n.y), pack_half2(n.z, n.w));
        });
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

KERNEL __launch_bounds__(640) matmul_lone(const __grid_constant__ Params p) { matmul_lone<LONE_HALF>(p); }

// x is float32 and normed here; at least NORM_PARTS warps.
KERNEL __launch_bounds__(640) matmul_lone_normed(const __grid_constant__ Params p) { matmul_lone<LONE_NORMED>(p); }

// Grid: blocks, ranks, tokens.
KERNEL __launch_bounds__(640) matmul_lone_routed(const __grid_constant__ Params p) { matmul_lone<LONE_ROUTED>(p); }

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
