// y = x W^T on packed weights of one FORMAT, with the operation that follows; see matmul.cuh.
//   matmul_few    up to 8 tokens: x lies in shared memory whole, each warp of a block has one segment of k
//   matmul_tile_N N tokens x 128 outputs a block: x streams through shared memory, weights straight into registers
//   matmul_reduce adds the segments that matmul_tile_N left to several blocks
#include "matmul.cuh"
#include "wgmma.cuh"

constexpr int GROUP = 4;  // tiles between two barriers of matmul_few
constexpr int PREFETCH = FORMAT == F32 ? 1 : FORMAT == F16 || FORMAT == BF16 ? 2 : 4;

DEVICE RowBase row_base(const Params& p, int expert, int tile, int lane) {
    RowBase result = {{0, 0}};
#if FORMAT == 11
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = tile * 16 + 8 * half + (lane >> 2);
        if (row < p.num_rows) result.base[half] = p.base[(i64)expert * p.num_rows + row];
    }
#endif
    return result;
}

KERNEL __launch_bounds__(512, 1) matmul_few(const __grid_constant__ Params p) {
    let_next_start();
    extern __shared__ __align__(16) u8 shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_chunk = segment_start(warp, p), last_chunk = segment_start(warp + 1, p);
    const int num_tiles = (p.num_rows + 15) / 16;
    const int first_token = p.token_experts ? blockIdx.y : 0;
    const int num_tokens = p.token_experts ? 1 : p.num_tokens;
    int expert = 0;
    if (p.token_experts) {  // which weights to read is known only after the router
        wait_for_previous();
        expert = p.token_experts[first_token];
    }
    const u8* weights = p.weights + (expert < 0 ? 0 : expert) * p.expert_bytes;

    // Weights in flight, across tiles.
    Raw<FORMAT> raw[PREFETCH];
    int ahead_tile = blockIdx.x, ahead_chunk = first_chunk;
    auto prefetch = [&](Raw<FORMAT>& into) {
        if (ahead_tile < num_tiles)
            into.load(unit_address<FORMAT>(weights, ahead_tile, ahead_chunk, p.num_units), ahead_chunk, lane);
        if (++ahead_chunk == last_chunk) ahead_chunk = first_chunk, ahead_tile += gridDim.x;
    };
#pragma unroll
    for (int j = 0; j < PREFETCH; j++) prefetch(raw[j]);
    if (!p.token_experts) wait_for_previous();
    if (expert < 0) return;  // a padded token

    // x: rows of float16, 16 bytes apart from a multiple of 128 so that ldmatrix meets no bank twice; then a row of zeros.
    const int stride = p.num_chunks * 128 + 16;
    const int num_x_bytes = (num_tokens + 1) * stride;
    for (int token = 0; token <= num_tokens; token++) {
        const int begin = token < num_tokens ? p.width * 2 : 0;
        for (int at = begin + threadIdx.x * 16; at < stride; at += blockDim.x * 16)
            *(uint4*)(shared + token * stride + at) = make_uint4(0, 0, 0, 0);
    }
    for (int token = p.input == NORMED_ROWS ? warp : 0; token < num_tokens;
         token += p.input == NORMED_ROWS ? p.num_segments : 1) {
        u8* row = shared + token * stride;
        const i64 source = p.x_rows ? p.x_rows[first_token + token] : first_token + token;
        if (p.input == NORMED_ROWS) {
            normalise_row((const float*)p.x + source * p.width, p.norm, lane, [&](int column, float4 n) {
                *(uint2*)(row + column * 2) = make_uint2(pack_half2(n.x, n.y), pack_half2(n.z, n.w));
            });
        } else {
            const u8* from = (const u8*)p.x + source * p.width * 2;
            for (int at = threadIdx.x * 16; at < p.width * 2; at += blockDim.x * 16)
                *(uint4*)(row + at) = *(const uint4*)(from + at);
        }
    }
    __syncthreads();

    const int x_row = lane & 7;  // ldmatrix: lane l addresses row l % 8 of matrix l / 8
    const u32 x_address = shared_address(shared) + (x_row < num_tokens ? x_row : num_tokens) * stride + (lane >> 3) * 16;
    float* sums = (float*)(shared + num_x_bytes);  // [2][GROUP][num_segments][num_tokens][16]
    const int tile_sums = p.num_segments * num_tokens * 16;

    auto finish_group = [&](int buffer, int first_tile, int num) {
        const float* from = sums + buffer * GROUP * tile_sums;
        const int rows = is_gated(p.epilogue) ? 8 : 16;
        for (int i = threadIdx.x; i < num * num_tokens * rows; i += blockDim.x) {
            const int row = i % rows, token = i / rows % num_tokens, slot = i / rows / num_tokens;
            const float* column = from + slot * tile_sums + token * 16 + row;
            float sum = column[0], up = rows == 8 ? column[8] : 0.0f;
            for (int segment = 1; segment < p.num_segments; segment++) {
                sum += column[segment * num_tokens * 16];
                if (rows == 8) up += column[segment * num_tokens * 16 + 8];
            }
            const int out_row = (first_tile + slot * gridDim.x) * 16 + row;
            if (rows == 8)
                finish_gated(p, expert, first_token + token, out_row, sum, up);
            else
                finish(p, expert, first_token + token, out_row, sum);
        }
    };

    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int tile = blockIdx.x, chunk = first_chunk, slot = 0, buffer = 0;
    RowBase base = row_base(p, expert, tile, lane);
    RowBase next_base = row_base(p, expert, tile + gridDim.x, lane);
    while (tile < num_tiles) {
#pragma unroll
        for (int j = 0; j < PREFETCH; j++) {
            if (tile >= num_tiles) break;
            const Scales<FORMAT> scales(raw[j], base);
            u32 b[2][4];
            load_matrices(b[0], x_address + chunk * 128);
            load_matrices(b[1], x_address + chunk * 128 + 64);
#pragma unroll
            for (int s = 0; s < 4; s++) {
                u32 a[4];
                fragment_of<FORMAT>(raw[j], scales, s, a);
                mma_16x8x16(acc, a, b[s >> 1][2 * (s & 1)], b[s >> 1][2 * (s & 1) + 1]);
            }
            prefetch(raw[j]);
            if (++chunk < last_chunk) continue;
            chunk = first_chunk;
            float* to = sums + (buffer * GROUP + slot) * tile_sums + warp * num_tokens * 16 + (lane >> 2);
            const int token = 2 * (lane & 3);
            if (token < num_tokens) to[token * 16] = acc[0], to[token * 16 + 8] = acc[2];
            if (token + 1 < num_tokens) to[token * 16 + 16] = acc[1], to[token * 16 + 24] = acc[3];
            acc[0] = acc[1] = acc[2] = acc[3] = 0.0f;
            tile += gridDim.x;
            base = next_base, next_base = row_base(p, expert, tile + gridDim.x, lane);
            if (++slot == GROUP || tile >= num_tiles) {
                __syncthreads();  // the other buffer was finished before all warps came here
                finish_group(buffer, tile - slot * gridDim.x, slot);
                slot = 0, buffer ^= 1;
            }
        }
    }
}

// ---- tiles of TOKENS x 128 outputs

constexpr int STAGES = 4;

template <int TOKENS>
struct Accumulators {
    float d[TOKENS / 8][4];
    DEVICE void clear() {
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++) d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
    }
    DEVICE void add(const Accumulators& other) {
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) d[n][i] += other.d[n][i];
    }
};

// Products of half a chunk (2 steps of 16 columns) of a warp's 16 rows with the TOKENS rows of x at `stage`. On Hopper
// they run on after the call; `wait_for_products` lets at most the last call's go on.
template <int TOKENS>
DEVICE void multiply(Accumulators<TOKENS>& acc, const u32 (&a)[2][4], u32 stage, int half, int lane) {
#if HAS_WGMMA
    wgmma_fence();
    const u64 descriptor = wgmma_descriptor(stage) + 4 * half;
    wgmma_64(acc.d, a[0], descriptor);
    wgmma_64(acc.d, a[1], descriptor + 2);
    wgmma_commit();
#else
    const int row = lane & 7;
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n += 2) {  // matrices: (n, k 0-7), (n, k 8-15), (n + 1, k 0-7), ...
            u32 b[4];
            const int token = (n + (lane >> 4)) * 8 + row, piece = 2 * (2 * half + s) + (lane >> 3 & 1);
            load_matrices(b, stage + token * 128 + ((piece ^ row) << 4));
            mma_16x8x16(acc.d[n], a[s], b[0], b[1]);
            mma_16x8x16(acc.d[n + 1], a[s], b[2], b[3]);
        }
#endif
}

template <int PENDING>
DEVICE void wait_for_products() {
#if HAS_WGMMA
    wgmma_wait<PENDING>();
#endif
}

template <int TOKENS>
DEVICE void matmul_tile(const Params& p) {
    let_next_start();
    extern __shared__ u8 unaligned[];
    const u32 stages = (shared_address(unaligned) + 1023) & ~1023u;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int num_tiles = (p.num_rows + 15) / 16;
    const int tile = blockIdx.x * 8 + warp;
    const int first_segment = blockIdx.z * p.num_segments / gridDim.z;
    const int last_segment = (blockIdx.z + 1) * p.num_segments / gridDim.z;
    const int first_chunk = segment_start(first_segment, p), last_chunk = segment_start(last_segment, p);
    int expert = 0, first_token = blockIdx.y * TOKENS, num_tokens = min(TOKENS, p.num_tokens - first_token);
    if (p.tiles) {
        wait_for_previous();
        if ((int)blockIdx.y >= *p.num_tiles) return;
        const int4 entry = p.tiles[blockIdx.y];
        expert = entry.x, first_token = entry.y, num_tokens = entry.z;
    }
    const u8* weights = p.weights + expert * p.expert_bytes;
    const int read_tile = min(tile, (num_tiles + 3) / 4 * 4 - 1);  // rows beyond the matrix repeat its last ones
    auto load = [&](Raw<FORMAT>& into, int chunk) {
        if (chunk < last_chunk) into.load(unit_address<FORMAT>(weights, read_tile, chunk, p.num_units), chunk, lane);
    };
    Raw<FORMAT> next, after_next;
    load(next, first_chunk);
    load(after_next, first_chunk + 1);
    const RowBase base = row_base(p, expert, tile, lane);
    if (!p.tiles) wait_for_previous();

    // Copies of x: thread i brings the 16-byte piece i % 8 of the rows i / 8, i / 8 + 32, ...
    constexpr int ROUNDS = TOKENS >= 32 ? TOKENS / 32 : 1;
    const int piece = threadIdx.x & 7, first_row = threadIdx.x >> 3;
    const u8* from[ROUNDS];
    bool wanted[ROUNDS];
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
        const int row = first_row + 32 * r;
        wanted[r] = row < num_tokens;
        const i64 source = !wanted[r] ? 0 : p.x_rows ? p.x_rows[first_token + row] : first_token + row;
        from[r] = (const u8*)p.x + source * p.width * 2 + piece * 16;
    }
    auto copy = [&](int chunk) {
        if (chunk < last_chunk) {
            const u32 stage = stages + (chunk - first_chunk) % STAGES * (TOKENS * 128);
            const bool inside = chunk * 64 + piece * 8 < p.width;
#pragma unroll
            for (int r = 0; r < ROUNDS; r++) {
                const int row = first_row + 32 * r;
                if (row < TOKENS)
                    copy_async(stage + row * 128 + ((piece ^ (row & 7)) << 4), inside ? from[r] + chunk * 128 : from[r],
                               wanted[r] && inside);
            }
        }
        copy_commit();
    };
    for (int i = 0; i < STAGES - 2; i++) copy(first_chunk + i);

    Accumulators<TOKENS> acc, total;
    total.clear();
    for (int segment = first_segment, chunk = first_chunk; segment < last_segment; segment++) {
        acc.clear();
        for (const int end = segment_start(segment + 1, p); chunk < end; chunk++) {
            copy_wait<STAGES - 3>();
#if HAS_WGMMA
            publish_to_wgmma();
#endif
            __syncthreads();  // this chunk's x is there; everybody has finished the products of the chunk before the last
            copy(chunk + STAGES - 2);
            const Raw<FORMAT> raw = next;
            next = after_next;
            load(after_next, chunk + 2);
            const Scales<FORMAT> scales(raw, base);
            const u32 stage = stages + (chunk - first_chunk) % STAGES * (TOKENS * 128);
            u32 a[2][2][4];  // while one half's products run, the other half is dequantised
#pragma unroll
            for (int half = 0; half < 2; half++) {
                wait_for_products<1>();
                fragment_of<FORMAT>(raw, scales, 2 * half, a[half][0]);
                fragment_of<FORMAT>(raw, scales, 2 * half + 1, a[half][1]);
                multiply<TOKENS>(acc, a[half], stage, half, lane);
            }
        }
        wait_for_products<0>();
        if (gridDim.z == 1) {
            total.add(acc);
            continue;
        }
        float* to = p.partials + (i64)segment * p.num_tokens * p.num_rows;
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int token = 8 * n + 2 * (lane & 3) + (i & 1), row = tile * 16 + (lane >> 2) + 8 * (i >> 1);
                if (token < num_tokens && row < p.num_rows)
                    to[(i64)(first_token + token) * p.num_rows + row] = acc.d[n][i];
            }
    }
    if (gridDim.z > 1 || tile >= num_tiles) return;
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int token = 8 * n + 2 * (lane & 3) + i, row = tile * 16 + (lane >> 2);
            if (token >= num_tokens) continue;
            if (is_gated(p.epilogue)) {
                finish_gated(p, expert, first_token + token, row, total.d[n][i], total.d[n][i + 2]);
            } else {
                finish(p, expert, first_token + token, row, total.d[n][i]);
                finish(p, expert, first_token + token, row + 8, total.d[n][i + 2]);
            }
        }
}

#define TILE_KERNEL(TOKENS) \
    KERNEL __launch_bounds__(256) matmul_tile_##TOKENS(const __grid_constant__ Params p) { matmul_tile<TOKENS>(p); }
TILE_KERNEL(16)
TILE_KERNEL(32)
TILE_KERNEL(64)
TILE_KERNEL(128)

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
