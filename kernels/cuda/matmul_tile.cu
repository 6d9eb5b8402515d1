// y = x W^T for any number of tokens, in tiles of TOKENS x 128 outputs a block; see matmul.cuh. Each of eight warps
// dequantises the weights of 16 outputs in registers, as the tensor cores' A operand; x is B, in shared memory.
//   matmul_tile.cuh     on Hopper: the copy engine brings weights and x
//   matmul_portable.cuh elsewhere: each thread copies its share, ahead of time
// A block has all segments if it has room for a second set of sums (TOKENS == SUMMING_TOKENS), else one: the one of its
// z, or the matrix's only one.
#include "matmul.cuh"
#include "wgmma.cuh"

constexpr int SUMMING_TOKENS = 128;
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
        first_chunk = segment_start(first_segment, p), last_chunk = segment_start(last_segment, p);
        expert = 0, first_token = blockIdx.y * tokens, num_tokens = min(tokens, p.num_tokens - first_token);
        if (!p.tiles) return true;
        wait_for_previous();
        if ((int)blockIdx.y >= *p.num_tiles) return false;
        const int4 entry = p.tiles[blockIdx.y];
        expert = entry.x, first_token = entry.y, num_tokens = entry.z;
        return true;
    }
};

// Sums of one segment for matmul_reduce.
template <int TOKENS>
DEVICE void store_partials(const Params& p, const Work& work, int segment, int tile, int lane,
                           const Accumulators<TOKENS>& sums) {
    float* to = p.partials + (i64)segment * p.num_tokens * p.num_rows;
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = 8 * n + 2 * (lane & 3) + (i & 1), row = tile * 16 + (lane >> 2) + 8 * (i >> 1);
            if (token < work.num_tokens && row < p.num_rows)
                to[(i64)(work.first_token + token) * p.num_rows + row] = sums.d[n][i];
        }
}

template <int TOKENS>
DEVICE void store_sums(const Params& p, const Work& work, int tile, int lane, const Accumulators<TOKENS>& sums) {
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n++)
        finish_fragment(p, work.expert, work.first_token + 8 * n, work.num_tokens - 8 * n, tile, lane, sums.d[n]);
}

#if HAS_WGMMA
#include "matmul_tile.cuh"
#else
#include "matmul_portable.cuh"
#endif
