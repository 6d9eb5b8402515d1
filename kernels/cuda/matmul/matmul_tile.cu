// y = x W^T for any number of tokens, in tiles of TOKENS x 128 outputs a block; see matmul.cuh. Each of eight warps
// dequantises the weights of 16 outputs in registers, as the tensor cores' A operand; x is B, in shared memory.
//   matmul_tile.cuh     on Hopper: the copy engine brings weights and x
//   matmul_portable.cuh elsewhere: each thread copies its share, ahead of time
// A block has all segments and finishes what they add up to, or one, the one of its z, and leaves it to matmul_reduce.
#include "matmul.cuh"
#include "../common/wgmma.cuh"

constexpr int SUMMING_TOKENS = 128;  // up to here a block has registers for the sums of segments
constexpr int MAX_STAGES = 8;

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

// What a block works on.
struct Work {
    int first_segment, last_segment, first_chunk, last_chunk;
    int expert, first_token, num_tokens;

    // False: nothing. Waits for the kernel before if that decides.
    DEVICE bool find(const Params& p, int tokens) {
        first_segment = blockIdx.z * p.num_segments / gridDim.z;
        last_segment = (blockIdx.z + 1) * p.num_segments / gridDim.z;
        first_chunk = segment_start(first_segment, p) * Layout<FORMAT>::chunks;
        last_chunk = segment_start(last_segment, p) * Layout<FORMAT>::chunks;
        expert = 0, first_token = blockIdx.y * tokens, num_tokens = min(tokens, p.num_tokens - first_token);
        if (!p.tiles) return true;
        wait_for_previous();
        if ((int)blockIdx.y >= *p.num_tiles) return false;
        const int4 entry = p.tiles[blockIdx.y];
        expert = entry.x, first_token = entry.y, num_tokens = entry.z;
        return true;
    }
};

template <int EPILOGUE>
DEVICE void put_rows(const Params& p, const Work& work, i64 at, const OutputRow& output, const float* sums,
                     int stride) {
#pragma unroll 4
    for (int token = threadIdx.x / 128; token < work.num_tokens; token += 2)
        put<EPILOGUE>(p, at + (i64)token * p.out_stride, output.of(sums[token * stride]));
}

// Added to what `out` holds. All loads of a batch come first: the compiler may not move a load before a store.
DEVICE void add_rows(const Params& p, const Work& work, i64 at, const OutputRow& output, const float* sums,
                     int stride) {
    constexpr int BATCH = 16;
    float* out = (float*)p.out + at;
#pragma unroll 1
    for (int first = threadIdx.x / 128; first < work.num_tokens; first += 2 * BATCH) {
        float old[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (first + 2 * i < work.num_tokens) old[i] = out[(i64)(first + 2 * i) * p.out_stride];
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (first + 2 * i < work.num_tokens)
                out[(i64)(first + 2 * i) * p.out_stride] = __fadd_rn(old[i], output.of(sums[(first + 2 * i) * stride]));
    }
}

// Brings what `add_rows` will read into the L2 cache, while the products are made.
DEVICE void prefetch_rows(const Params& p, const Work& work) {
    if (p.epilogue != ADD_RESIDUAL || gridDim.z > 1) return;
    for (int i = threadIdx.x; i < work.num_tokens * 4; i += 256) {  // lines of 32 outputs
        const int row = blockIdx.x * 128 + i % 4 * 32;
        const float* line = (const float*)p.out + (i64)(work.first_token + i / 4) * p.out_stride + p.out_column + row;
        if (row < p.num_rows) asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
    }
}

// Sums of a tile, as they lie in the warps' fragments, by way of shared memory -> the partial sums of `segment`, or if
// that is -1 finished to `out`. In shared memory so that one short loop, in which neighbours store side by side, does
// for all: spelled out for each register, it is more code than fits the instruction cache. All threads of the block;
// `shared` [TOKENS][STRIDE] is free.
template <int TOKENS>
DEVICE void store_tile(const Params& p, const Work& work, int segment, float* shared,
                       const Accumulators<TOKENS>& sums) {
    constexpr int STRIDE = 128 + 4;  // no two lanes of a store in one bank
    const int lane = threadIdx.x % 32, first_row = blockIdx.x * 128;
    float* to = shared + 2 * (lane & 3) * STRIDE + threadIdx.x / 32 * 16 + (lane >> 2);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) to[(8 * n + (i & 1)) * STRIDE + 8 * (i >> 1)] = sums.d[n][i];
    __syncthreads();
    const i64 line = (i64)work.first_token * p.out_stride + p.out_column;
    if (segment < 0 && is_gated(p.epilogue)) {
        const int local = threadIdx.x % 64 / 8 * 16 + threadIdx.x % 8, row = first_row + local;
        const OutputRow gate(p, work.expert, row), up(p, work.expert, row + 8);
        if (row >= p.num_rows) return;
#pragma unroll 4
        for (int token = threadIdx.x / 64; token < work.num_tokens; token += 4)
            put_gated(p, line + (i64)token * p.out_stride + gated_column(row), gate.of(shared[token * STRIDE + local]),
                      up.of(shared[token * STRIDE + local + 8]));
        return;
    }
    const int local = threadIdx.x % 128, row = first_row + local;
    if (row >= p.num_rows) return;
    if (segment >= 0) {
        float* partial = p.partials + ((i64)segment * p.num_tokens + work.first_token) * p.num_rows + row;
#pragma unroll 4
        for (int token = threadIdx.x / 128; token < work.num_tokens; token += 2)
            partial[(i64)token * p.num_rows] = shared[token * STRIDE + local];
        return;
    }
    const OutputRow output(p, work.expert, row);
    if (p.epilogue == STORE_HALF) put_rows<STORE_HALF>(p, work, line + row, output, shared + local, STRIDE);
    if (p.epilogue == STORE_FLOAT) put_rows<STORE_FLOAT>(p, work, line + row, output, shared + local, STRIDE);
    if (p.epilogue == ADD_RESIDUAL) add_rows(p, work, line + row, output, shared + local, STRIDE);
    if (p.epilogue == GELU) put_rows<GELU>(p, work, line + row, output, shared + local, STRIDE);
}

#if HAS_WGMMA
#include "matmul_tile.cuh"
#else
#include "matmul_portable.cuh"
#endif
