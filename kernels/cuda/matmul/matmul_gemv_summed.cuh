// The last product of a token's experts and the weighted sum of what they give, added to the residual stream: bit for
// bit what matmul_gemv_routed and moe_combine make of it. The warps of a block are shared by the token's experts, each
// of which has one for each partition of a tile.
#pragma once
#include "matmul_gemv.cuh"

// Grid: blocks, 1, tokens. Shared memory: x of each expert; the sums of each; what each gives; their weights; each
// warp's ring of weights. An expert that all tokens go through comes after those chosen; its share is in its x already.
KERNEL __launch_bounds__(32 * MAX_SUMMED_WARPS) matmul_gemv_summed(const __grid_constant__ SmallBatchParams p) {
    const MatrixParams& matrix = p.matrix;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = threadIdx.x % 16, token = blockIdx.z;
    const int num_chosen = p.routing.num_used, num_tiles = (matrix.num_rows + 15) / 16;
    const int num_used = num_chosen + (p.routing.shared_packed ? 1 : 0);
    const int rank = warp * matrix.partition_reciprocal >> RECIPROCAL_BITS;
    const int partition = warp - rank * matrix.num_partitions, row_bytes = 4 * partition_stride(matrix);
    const int vectors = matrix.width / 8, row_vectors = matrix.num_chunks * 8;  // of x: 16 bytes each
    u8* const sums = shared + num_used * row_vectors * 16;                      // [num_used][16 rows] of row_bytes
    float* const results = (float*)(sums + num_used * 16 * row_bytes);          // [num_used][16 rows]
    float* const routing_weights = results + num_used * 16;                     // [num_used]

    load_grid();
    int chosen;  // the expert at place `lane`: -1 until the token's first product has begun
    do chosen = load_relaxed(p.routing.experts + token * num_chosen + min(lane, num_chosen - 1));
    while (chosen < 0);
    const int expert = __shfl_sync(ALL_LANES, chosen, rank);  // the warp's
    const u8* packed = rank < num_chosen ? matrix.packed + expert * matrix.expert_bytes : p.routing.shared_packed;
    OneTokenWeights<STREAMED, 1>::type weights(matrix, packed, shared_address(shared) + p.ring_at, partition,
                                               blockIdx.x, gridDim.x, num_tiles);
    weights.begin(matrix, packed);
    const bool finishes = threadIdx.x < num_used * 16;  // a row of the expert at place threadIdx.x / 16
    const int finished = __shfl_sync(ALL_LANES, chosen, finishes ? threadIdx.x / 16 : 0);
    if (finishes) fill_row(sums - shared + threadIdx.x * row_bytes, matrix.num_partitions);
    if (warp == 0) {  // the logits were there before the previous kernel began
        const float logit = load_relaxed(p.routing.router_logits + (i64)token * p.routing.num_experts + chosen);
        const float weight = routing_weight(logit, num_chosen);
        if (lane < num_used) routing_weights[lane] = lane < num_chosen ? weight : 1.0f;
    }
    const uint4* x = (const uint4*)p.x + ((i64)token * num_used + rank) * vectors;
    uint4* to_x = (uint4*)shared + rank * row_vectors;
    wait_for_previous();
    for (int vector = partition * 32 + lane; vector < row_vectors; vector += 32 * matrix.num_partitions)
        to_x[vector] = vector < vectors ? x[vector] : uint4{};
    __syncthreads();

    const u32 x_address = shared_address(shared) + weights.x_at() + rank * row_vectors * 16 + (lane >> 3) * 16;
    const u32 own = sums - shared + (rank * 16 + (lane >> 2)) * row_bytes + partition * 4;
#pragma unroll 1
    for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
        const RowBase base = row_base(matrix, expert, tile, lane);
        const bool is_output = threadIdx.x < 16 && tile * 16 + row < matrix.num_rows;
        const OutputRow output(matrix, finished, finishes ? tile * 16 + row : matrix.num_rows);
        float* to = (float*)p.output.out + (i64)token * p.output.stride + tile * 16 + row;
        float sum = is_output ? *to : 0.0f, acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        weights.multiply(matrix, packed, acc, Factors(base), x_address, tile + gridDim.x >= num_tiles);
        put_sums(own, row_bytes, acc);
        __syncthreads();
        if (finishes) {
            const u32 sum_row = sums - shared + threadIdx.x * row_bytes;
            results[threadIdx.x] = output.of(sum_of_row(sum_row, matrix.num_partitions));
        }
        __syncthreads();
        if (!is_output) continue;
        for (int place = 0; place < num_used; place++)
            sum = fmaf(routing_weights[place], results[place * 16 + row], sum);
        *to = sum;
    }
}
