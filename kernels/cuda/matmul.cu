// y = x W^T on packed weights of one FORMAT, with the operation that follows; see matmul.cuh.
//   matmul_few    up to 8 tokens: x lies in shared memory whole, each warp has a tile of 16 outputs or a segment of one
//   matmul_tile_N N tokens x 128 outputs a block: x and weights stream through shared memory
//   matmul_reduce adds the segments that matmul_tile_N left to several blocks
#include "matmul.cuh"
#include "wgmma.cuh"

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

// Sums of a tile's 16 rows and 8 tokens, as they lie in a warp's fragment, -> out.
DEVICE void finish_fragment(const Params& p, int expert, i64 first_token, int num_tokens, int tile, int lane,
                            const float (&sum)[4]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int token = 2 * (lane & 3) + i, row = tile * 16 + (lane >> 2);
        if (token >= num_tokens) continue;
        if (is_gated(p.epilogue)) {
            finish_gated(p, expert, first_token + token, row, sum[i], sum[i + 2]);
        } else {
            finish(p, expert, first_token + token, row, sum[i]);
            finish(p, expert, first_token + token, row + 8, sum[i + 2]);
        }
    }
}

// Shared memory: rows of x as float16 and a row of zeros, `stride` bytes each; then the sums of norms or of segments.
KERNEL __launch_bounds__(512, 1) matmul_few(const __grid_constant__ Params p) {
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

    // Weights in flight, across tiles.
    Raw<FORMAT> raw[PREFETCH];
    int tile = blockIdx.x * tiles_at_once + warp / p.num_segments;
    int ahead_tile = tile, ahead_chunk = first_chunk;
    auto prefetch = [&](Raw<FORMAT>& into) {
        if (ahead_tile < num_tiles)
            into.load(unit_address<FORMAT>(weights, ahead_tile, ahead_chunk, p.num_units), ahead_chunk, lane);
        if (++ahead_chunk == last_chunk) ahead_chunk = first_chunk, ahead_tile += tile_step;
    };
#pragma unroll
    for (int j = 0; j < PREFETCH; j++) prefetch(raw[j]);
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
            for (int at = threadIdx.x * 16; at < p.width * 2; at += blockDim.x * 16)
                *(uint4*)(shared + token * stride + at) = *(const uint4*)(from + at);
        }
    }
    __syncthreads();

    const int x_row = lane & 7;  // ldmatrix: lane l addresses row l % 8 of matrix l / 8
    const u32 x_address = shared_address(shared) + (x_row < num_tokens ? x_row : num_tokens) * stride + (lane >> 3) * 16;
    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int chunk = first_chunk, buffer = 0;
    // Warps of a block have their tiles at the same time: where segments meet, all come to the barrier equally often.
    for (int block_tile = blockIdx.x * tiles_at_once; block_tile < num_tiles;) {
#pragma unroll
        for (int j = 0; j < PREFETCH; j++) {
            if (block_tile >= num_tiles) break;
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
            if (p.num_segments == 1) {
                if (tile < num_tiles) finish_fragment(p, expert, first_token, num_tokens, tile, lane, acc);
            } else {  // [2][warps][32 lanes][4]
                float4* all = (float4*)sums + buffer * blockDim.x;
                all[threadIdx.x] = make_float4(acc[0], acc[1], acc[2], acc[3]);
                __syncthreads();  // the other buffer was read before all warps came here
                if (segment == 0 && tile < num_tiles) {
                    for (int other = 1; other < p.num_segments; other++) {
                        const float4 v = all[threadIdx.x + 32 * other];
                        acc[0] += v.x, acc[1] += v.y, acc[2] += v.z, acc[3] += v.w;
                    }
                    finish_fragment(p, expert, first_token, num_tokens, tile, lane, acc);
                }
                buffer ^= 1;
            }
            acc[0] = acc[1] = acc[2] = acc[3] = 0.0f;
            tile += tile_step, block_tile += tile_step;
            base = next_base, next_base = row_base(p, expert, tile + tile_step, lane);
        }
    }
}

// ---- tiles of TOKENS x 128 outputs

#if HAS_WGMMA
constexpr int SHARED_BYTES = 216 * 1024, HALF_SHARED_BYTES = 108 * 1024;  // of one block a processor, of two
#else
constexpr int SHARED_BYTES = 96 * 1024, HALF_SHARED_BYTES = 96 * 1024;
#endif
constexpr int MAX_STAGES = 8;

// Shared memory, in this order: stages of x, at multiples of 1024 bytes; stages of weights; which row of x a token is.
template <int TOKENS>
struct Ring {
    static constexpr bool staged = FORMAT > BF16 || (HAS_WGMMA && FORMAT != F32);  // weights: wider ones take too much
    static constexpr int x_bytes = TOKENS * 128, weight_bytes = staged ? 8 * Staged<FORMAT>::bytes : 0;
    static constexpr int most = (TOKENS > 64 ? SHARED_BYTES : HALF_SHARED_BYTES) - 1024 - TOKENS * 4;
    static constexpr int fitting = most / (x_bytes + weight_bytes);
    static constexpr int stages = fitting < MAX_STAGES ? fitting : MAX_STAGES;
};

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

// A block has all segments if it has room for a second set of sums (TOKENS == 128), else one: the one of its z, or the
// matrix's only one.
template <int TOKENS>
DEVICE void matmul_tile(const Params& p) {
    using R = Ring<TOKENS>;
    static_assert(R::stages >= 3, "a stage is filled while another one is read and products of a third still run");
    constexpr bool sums_segments = TOKENS == 128;
    let_next_start();
    extern __shared__ u8 unaligned[];
    const u32 x_stages = (shared_address(unaligned) + 1023) & ~1023u;
    const u32 weight_stages = x_stages + R::stages * R::x_bytes;
    int* sources = (int*)(unaligned + (weight_stages - shared_address(unaligned)) + R::stages * R::weight_bytes);
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
    auto copy_weights = [&](int chunk, int stage) {
        if (R::staged && chunk < last_chunk)
            Staged<FORMAT>::copy(weight_stages + stage * R::weight_bytes + warp * Staged<FORMAT>::bytes,
                                 unit_address<FORMAT>(weights, read_tile, chunk, p.num_units), chunk, lane);
    };
#pragma unroll
    for (int i = 0; i < R::stages - 2; i++) copy_weights(first_chunk + i, i);
    const RowBase base = row_base(p, expert, tile, lane);
    if (!p.tiles) wait_for_previous();

    // Copies of x: thread i brings the 16-byte piece i % 8 of the rows i / 8, i / 8 + 32, ...
    for (int row = threadIdx.x; row < TOKENS; row += 256)
        sources[row] = row >= num_tokens ? -1 : p.x_rows ? p.x_rows[first_token + row] : first_token + row;
    __syncthreads();
    const int piece = threadIdx.x & 7, first_row = threadIdx.x >> 3;
    auto copy_x = [&](int chunk, int stage) {
        if (chunk < last_chunk) {
            const u8* column = (const u8*)p.x + chunk * 128 + piece * 16;
            const bool inside = chunk * 64 + piece * 8 < p.width;
            const u32 to = x_stages + stage * R::x_bytes + first_row * 128 + ((piece ^ (first_row & 7)) << 4);
#pragma unroll
            for (int row = 0; row < TOKENS; row += 32) {
                if (TOKENS < 32 && first_row >= TOKENS) break;
                const int source = sources[first_row + row];
                const bool wanted = inside && source >= 0;
                copy_async(to + row * 128, wanted ? column + (i64)source * p.width * 2 : (const u8*)p.x, wanted);
            }
        }
    };
#pragma unroll
    for (int i = 0; i < R::stages - 2; i++) {
        copy_x(first_chunk + i, i);
        copy_commit();
    }

    Accumulators<TOKENS> acc;
    Accumulators<sums_segments ? TOKENS : 8> total;
    acc.clear(), total.clear();
    int stage = 0, filling = R::stages - 2;
    for (int segment = first_segment, chunk = first_chunk; segment < last_segment; segment++) {
        for (const int end = segment_start(segment + 1, p); chunk < end; chunk++) {
            copy_wait<R::stages - 3>();
#if HAS_WGMMA
            publish_to_wgmma();
#endif
            __syncthreads();  // this chunk is there; everybody has finished the products of the chunk before the last
            copy_weights(chunk + R::stages - 2, filling);
            copy_x(chunk + R::stages - 2, filling);
            copy_commit();
            if (++filling == R::stages) filling = 0;
            Raw<FORMAT> raw;
            if (R::staged)
                Staged<FORMAT>::load(raw, weight_stages + stage * R::weight_bytes + warp * Staged<FORMAT>::bytes, lane);
            else
                raw.load(unit_address<FORMAT>(weights, read_tile, chunk, p.num_units), chunk, lane);
            const Scales<FORMAT> scales(raw, base);
            u32 a[2][2][4];  // while one half's products run, the other half is dequantised
#pragma unroll
            for (int half = 0; half < 2; half++) {
                wait_for_products<1>();
                fragment_of<FORMAT>(raw, scales, 2 * half, a[half][0]);
                fragment_of<FORMAT>(raw, scales, 2 * half + 1, a[half][1]);
                multiply<TOKENS>(acc, a[half], x_stages + stage * R::x_bytes, half, lane);
            }
            if (++stage == R::stages) stage = 0;
        }
        wait_for_products<0>();
        if (gridDim.z > 1) {
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
        if constexpr (sums_segments) {
            total.add(acc);
            acc.clear();
        }
    }
    if (gridDim.z > 1 || tile >= num_tiles) return;
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++) {
        if constexpr (sums_segments)
            finish_fragment(p, expert, first_token + 8 * n, num_tokens - 8 * n, tile, lane, total.d[n]);
        else
            finish_fragment(p, expert, first_token + 8 * n, num_tokens - 8 * n, tile, lane, acc.d[n]);
    }
}

#define TILE_KERNEL(TOKENS) \
    KERNEL __launch_bounds__(256) matmul_tile_##TOKENS(const __grid_constant__ Params p) { matmul_tile<TOKENS>(p); }
TILE_KERNEL(16)
TILE_KERNEL(32)
TILE_KERNEL(64)
TILE_KERNEL(128)
#if HAS_WGMMA
TILE_KERNEL(256)
#endif

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
