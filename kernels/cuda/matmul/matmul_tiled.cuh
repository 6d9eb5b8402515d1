// Tiles of TOKENS x 128 outputs on packed weights: what the kernels of matmul_tiled.cu and matmul_stream_k.cu share.
#pragma once
#include "matmul.cuh"
#include "../common/wgmma.cuh"

// Weights of MXFP4, which take few instructions to unpack, are up to three groups ahead of their products on Hopper,
// not one, and blocks of its experts spare what they can. Other formats are as they were when they were measured.
constexpr bool FAR_AHEAD = HAS_WGMMA && Layout<FORMAT>::scaling == EXPONENT;

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
    int first_partition, last_partition, first_chunk, last_chunk;
    int expert, first_token, num_tokens, first_row;
    static constexpr int NO_PARTITION = -1;  // less than any

    // Returns false if there is nothing to do. Waits for the previous kernel where that decides it.
    DEVICE bool find(const TiledParams& p, int tokens) {
        find_chunks(p.matrix, blockIdx.z * p.matrix.num_partitions / gridDim.z,
                    (blockIdx.z + 1) * p.matrix.num_partitions / gridDim.z);
        first_row = blockIdx.x * 128;
        expert = 0, first_token = blockIdx.y * tokens, num_tokens = min(tokens, p.num_tokens - first_token);
        if (!p.tiles) return true;
        wait_for_previous();
        if ((int)blockIdx.y >= *p.num_tiles) return false;
        const int4 entry = p.tiles[blockIdx.y];
        expert = entry.x, first_token = entry.y, num_tokens = entry.z;
        return true;
    }
    DEVICE void find_chunks(const MatrixParams& matrix, int first, int last) {
        first_partition = first, last_partition = last;
        first_chunk = partition_start(first, matrix) * Layout<FORMAT>::chunks;
        last_chunk = partition_start(last, matrix) * Layout<FORMAT>::chunks;
    }
    // The partition whose sums the block leaves to matmul_reduce, or NO_PARTITION: it has all and finishes their sum.
    DEVICE int partition_to_leave() const { return gridDim.z > 1 ? first_partition : NO_PARTITION; }
};

// Stores the outputs of one row, whose sums lie `stride` apart, token by token; `index` is the first token's output.
template <int KIND>
DEVICE void store_rows(const TiledParams& p, const Work& work, i64 index, const OutputRow& row, const float* sums,
                       int stride) {
    const Epilogue epilogue(p.output, KIND);
#pragma unroll 4
    for (int token = threadIdx.x / 128; token < work.num_tokens; token += 2)
        epilogue(epilogue.address(index + (i64)token * p.output.stride), row.of(sums[token * stride]), 0.0f,
                 NO_RESIDUAL);
}

// Adds the outputs of one row to what `out` holds. All loads of a batch come first: the compiler may not move a load
// before a store.
DEVICE void add_rows(const TiledParams& p, const Work& work, i64 index, const OutputRow& row, const float* sums,
                     int stride) {
    constexpr int BATCH = 16;
    const Epilogue epilogue(p.output, ADD_RESIDUAL);
    float* out = (float*)p.output.out + index;
#pragma unroll 1
    for (int first = threadIdx.x / 128; first < work.num_tokens; first += 2 * BATCH) {
        float old[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (first + 2 * i < work.num_tokens) old[i] = out[(i64)(first + 2 * i) * p.output.stride];
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (first + 2 * i < work.num_tokens)
                epilogue(out + (i64)(first + 2 * i) * p.output.stride, row.of(sums[(first + 2 * i) * stride]), 0.0f,
                         old[i]);
    }
}

// Brings what `add_rows` will read into the L2 cache, while the products are made.
DEVICE void prefetch_rows(const TiledParams& p, const Work& work) {
    if (p.output.epilogue != ADD_RESIDUAL || gridDim.z > 1) return;
    for (int i = threadIdx.x; i < work.num_tokens * 4; i += 256) {  // lines of 32 outputs
        const int row = work.first_row + i % 4 * 32;
        const float* line =
            (const float*)p.output.out + Epilogue(p.output, ADD_RESIDUAL).index(work.first_token + i / 4, row);
        if (row < p.matrix.num_rows) asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
    }
}

// Stores outputs of one row as the epilogue's kind says: KIND, or one that comes after it. Gated kinds are left out, as
// `store_tile` stores them itself.
template <int KIND = 0>
DEVICE void store_rows_of_kind(const TiledParams& p, const Work& work, int kind, i64 index, const OutputRow& row,
                               const float* sums, int stride) {
    if constexpr (!Epilogue(KIND).is_gated()) {
        if (kind == KIND) {
            if constexpr (KIND == ADD_RESIDUAL)
                add_rows(p, work, index, row, sums, stride);
            else
                store_rows<KIND>(p, work, index, row, sums, stride);
        }
    }
    if constexpr (KIND + 1 < NUM_EPILOGUES) store_rows_of_kind<KIND + 1>(p, work, kind, index, row, sums, stride);
}

// Stores the sums of a tile, which lie in the warps' fragments: as the partial sums of `partition`, or with
// NO_PARTITION finished, to `out`. They go through shared memory so that one short loop, in which neighbours store side
// by side, does for all: spelled out for each register, it is more code than fits the instruction cache. All threads of
// the block call it; `shared` [TOKENS][STRIDE] is free.
template <int TOKENS>
DEVICE void store_tile(const TiledParams& p, const Work& work, int partition, float* shared,
                       const Accumulators<TOKENS>& sums) {
    constexpr int STRIDE = 128 + 4;  // no bank conflicts
    const int lane = threadIdx.x % 32, first_row = work.first_row;
    float* to = shared + 2 * (lane & 3) * STRIDE + threadIdx.x / 32 * 16 + (lane >> 2);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++)
        if (!FAR_AHEAD || 8 * n < work.num_tokens)
#pragma unroll
            for (int i = 0; i < 4; i++) to[(8 * n + (i & 1)) * STRIDE + 8 * (i >> 1)] = sums.d[n][i];
    __syncthreads();
    const MatrixParams& matrix = p.matrix;
    const Epilogue epilogue(p.output);
    if (partition <= Work::NO_PARTITION && epilogue.is_gated()) {
        __builtin_assume(!epilogue.is_float());
        const int local = threadIdx.x % 64 / 8 * 16 + threadIdx.x % 8, row = first_row + local;
        const OutputRow gate(matrix, work.expert, row), up(matrix, work.expert, row + 8);
        if (row >= matrix.num_rows) return;
        const i64 index = epilogue.index(work.first_token, row);
#pragma unroll 4
        for (int token = threadIdx.x / 64; token < work.num_tokens; token += 4)
            epilogue(epilogue.address(index + (i64)token * p.output.stride), gate.of(shared[token * STRIDE + local]),
                     up.of(shared[token * STRIDE + local + 8]), NO_RESIDUAL);
        return;
    }
    const int local = threadIdx.x % 128, row = first_row + local;
    if (row >= matrix.num_rows) return;
    if (partition > Work::NO_PARTITION) {
        float* partial = p.partials + ((i64)partition * p.num_tokens + work.first_token) * matrix.num_rows + row;
#pragma unroll 4
        for (int token = threadIdx.x / 128; token < work.num_tokens; token += 2)
            partial[(i64)token * matrix.num_rows] = shared[token * STRIDE + local];
        return;
    }
    const OutputRow output(matrix, work.expert, row);
    const i64 index = epilogue.index(work.first_token, row);
    store_rows_of_kind(p, work, epilogue.kind, index, output, shared + local, STRIDE);
}

// The parameters of matmul_tiled_N on Hopper.
struct HopperTiledParams {
    TiledParams tiled;
    alignas(64) u8 x_map[128];  // tensor map of x, float16 [rows, width], boxes of 64 columns x TOKENS
};
