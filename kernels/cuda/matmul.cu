// y = x W^T on packed weights of one FORMAT, with the operation that follows; see matmul.cuh.
//   matmul_few     up to 8 tokens: x lies in shared memory whole, each warp has a tile of 16 outputs or a segment of one
//   matmul_reduce  adds the segments that several blocks of matmul_tile_N have left
#include "matmul.cuh"

constexpr int STAGES = FORMAT == F32 ? 2 : FORMAT == F16 || FORMAT == BF16 ? 4 : 8;  // chunks in flight of a warp

// Shared memory: rows of x as float16 and a row of zeros, `stride` bytes each; the sums of norms or of segments; each
// warp's ring of weights.
KERNEL __launch_bounds__(512) matmul_few(const __grid_constant__ Params p) {
    let_next_start();
    extern __shared__ __align__(16) u8 shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int num_tiles = (p.num_rows + 15) / 16;
    const int segment = warp % p.num_segments;  // warps of a tile lie together
    const int first_chunk = segment_start(segment, p), last_chunk = segment_start(segment + 1, p);
    const int tiles_at_once = blockDim.x / 32 / p.num_segments, tile_step = gridDim.x * tiles_at_once;
    const int first_token = p.token_experts ? blockIdx.y : 0;
    const int num_tokens = p.token_experts ? 1 : p.num_tokens;
    int expert = 0;
    if (p.token_experts) {  // which weights to read is known only after the router
        wait_for_previous();
        expert = p.token_experts[first_token];
    }
    const u8* weights = p.weights + (expert < 0 ? 0 : expert) * p.expert_bytes;

    // Weights in flight, across tiles. Loops are not unrolled: their code would not fit the instruction cache.
    using L = Layout<FORMAT>;
    constexpr int slot_bytes = Staged<FORMAT>::bytes;
    const u32 ring = shared_address(shared) + p.ring_at + warp * (STAGES * slot_bytes), ring_end = ring + STAGES * slot_bytes;
    int tile = blockIdx.x * tiles_at_once + warp / p.num_segments;
    int ahead_tile = tile, ahead_chunk = first_chunk;
    const u8* ahead_unit = unit_address<FORMAT>(weights, ahead_tile, ahead_chunk, p.num_units);
    auto prefetch = [&](u32 slot) {
        if (ahead_tile < num_tiles) Staged<FORMAT>::copy(slot, ahead_unit, ahead_chunk % L::chunks, lane);
        copy_commit();
        if (++ahead_chunk == last_chunk) {
            ahead_chunk = first_chunk, ahead_tile += tile_step;
            ahead_unit = unit_address<FORMAT>(weights, ahead_tile, ahead_chunk, p.num_units);
        } else if (ahead_chunk % L::chunks == 0) {
            ahead_unit += 4 * L::unit_bytes;
        }
    };
#pragma unroll 1
    for (u32 slot = ring; slot < ring_end; slot += slot_bytes) prefetch(slot);
    RowBase base = row_base(p, expert, tile, lane);
    RowBase next_base = row_base(p, expert, tile + tile_step, lane);
    if (p.input == NORMED_ROWS) prefetch_norm(p.norm);
    if (!p.token_experts) wait_for_previous();
    if (expert < 0) return;  // a padded token

    // Rows 16 bytes apart from a multiple of 128, so that ldmatrix meets no bank twice.
    const int stride = p.num_chunks * 128 + 16;
    float* sums = (float*)(shared + (num_tokens + 1) * stride);
    for (int token = 0; token <= num_tokens; token++) {
        const int begin = token < num_tokens ? p.width * 2 : 0;
        for (int at = begin + threadIdx.x * 16; at < stride; at += blockDim.x * 16)
            *(uint4*)(shared + token * stride + at) = make_uint4(0, 0, 0, 0);
    }
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

    const int x_row = lane & 7;  // ldmatrix: lane l addresses row l % 8 of matrix l / 8
    const u32 x_address = shared_address(shared) + (x_row < num_tokens ? x_row : num_tokens) * stride + (lane >> 3) * 16;
    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int chunk = first_chunk, buffer = 0;
    u32 slot = ring;
    // Warps of a block have their tiles at the same time: where segments meet, all come to the barrier equally often.
#pragma unroll 1
    for (int block_tile = blockIdx.x * tiles_at_once; block_tile < num_tiles;) {
        copy_wait<STAGES - 1>();
        Raw<FORMAT> raw;
        Staged<FORMAT>::load(raw, slot, lane);
        const Scales<FORMAT> scales(raw, base);
        u32 b[2][4];
        load_matrices(b[0], x_address + chunk * 128);
        load_matrices(b[1], x_address + chunk * 128 + 64);
        u32 a[4][4];
#pragma unroll
        for (int s = 0; s < 4; s++) fragment_of<FORMAT>(raw, scales, s, a[s]);
        prefetch(slot);  // the lane has read what it now overwrites, and no other lane reads it
        if ((slot += slot_bytes) == ring_end) slot = ring;
#pragma unroll
        for (int s = 0; s < 4; s++) mma_16x8x16(acc, a[s], b[s >> 1][2 * (s & 1)], b[s >> 1][2 * (s & 1) + 1]);
        if (++chunk < last_chunk) continue;
        chunk = first_chunk;
        bool finishes = tile < num_tiles;
        if (p.num_segments > 1) {  // [2][warps][32 lanes][4]
            float4* all = (float4*)sums + buffer * blockDim.x;
            all[threadIdx.x] = make_float4(acc[0], acc[1], acc[2], acc[3]);
            __syncthreads();  // the other buffer was read before all warps came here
            finishes &= segment == 0;
            if (finishes)
                for (int other = 1; other < p.num_segments; other++) {
                    const float4 v = all[threadIdx.x + 32 * other];
                    acc[0] += v.x, acc[1] += v.y, acc[2] += v.z, acc[3] += v.w;
                }
            buffer ^= 1;
        }
        if (finishes) finish_fragment(p, expert, first_token, num_tokens, tile, lane, acc);
        acc[0] = acc[1] = acc[2] = acc[3] = 0.0f;
        tile += tile_step, block_tile += tile_step;
        base = next_base, next_base = row_base(p, expert, tile + tile_step, lane);
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
    if (is_gated(p.epilogue))
        finish_gated(p, 0, token, row, sum, up);
    else
        finish(p, 0, token, row, sum);
}
