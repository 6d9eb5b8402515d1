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
    const int partition = warp - rank * matrix.num_partitions, stride = partition_stride(matrix);
    const int vectors = matrix.width / 8, row_vectors = matrix.num_chunks * 8;  // of x: 16 bytes each
    float* const sums = (float*)(shared + num_used * row_vectors * 16);         // [num_used][16 rows][stride]
    float* const results = sums + num_used * 16 * stride;                       // [num_used][16 rows]
    float* const routing_weights = results + num_used * 16;                     // [num_used]

    load_grid();
    int chosen;  // the expert at place `lane`: -1 until the token's first product has begun
    do chosen = load_relaxed(p.routing.experts + token * num_chosen + min(lane, num_chosen - 1));
    while (chosen < 0);
    const int expert = __shfl_sync(ALL_LANES, chosen, rank);  // the warp's
    const u8* packed = rank < num_chosen ? matrix.packed + expert * matrix.expert_bytes : p.routing.shared_packed;
    GemvWeights weights(matrix, packed, shared_address(shared) + p.ring_at, partition, blockIdx.x, gridDim.x,
                        num_tiles);
    const bool finishes = threadIdx.x < num_used * 16;  // a row of the expert at place threadIdx.x / 16
    const int finished = __shfl_sync(ALL_LANES, chosen, finishes ? threadIdx.x / 16 : 0);
    for (int i = threadIdx.x; i < num_used * 16 * stride; i += blockDim.x) sums[i] = -0.0f;
    wait_for_previous();
    if (warp == 0) {
        const float logit = p.routing.router_logits[(i64)token * p.routing.num_experts + chosen];
        const float weight = routing_weight(logit, num_chosen);
        if (lane < num_used) routing_weights[lane] = lane < num_chosen ? weight : 1.0f;
    }
    const uint4* x = (const uint4*)p.x + (i64)token * num_used * vectors;
    for (int i = threadIdx.x; i < num_used * row_vectors; i += blockDim.x) {
        const int place = i / row_vectors, vector = i - place * row_vectors;
        ((uint4*)shared)[i] = vector < vectors ? x[place * vectors + vector] : uint4{};
    }
    __syncthreads();

    const u32 x_address = shared_address(shared) + rank * row_vectors * 16 + (lane >> 3) * 16;
    float* own = sums + (rank * 16 + (lane >> 2)) * stride + partition;
#pragma unroll 1
    for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
        const RowBase base = row_base(matrix, expert, tile, lane);
        const bool is_output = threadIdx.x < 16 && tile * 16 + row < matrix.num_rows;
        const OutputRow output(matrix, finished, finishes ? tile * 16 + row : matrix.num_rows);
        float* to = (float*)p.output.out + (i64)token * p.output.stride + tile * 16 + row;
        float sum = is_output ? *to : 0.0f, acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        weights.multiply(matrix, packed, acc, base, x_address, tile + gridDim.x >= num_tiles);
        if ((lane & 3) == 0) own[0] = acc[0], own[8 * stride] = acc[2];
        __syncthreads();
        if (finishes) results[threadIdx.x] = output.of(sum_of_row(sums + threadIdx.x * stride, matrix.num_partitions));
        __syncthreads();
        if (!is_output) continue;
        for (int place = 0; place < num_used; place++)
            sum = fmaf(routing_weights[place], results[place * 16 + row], sum);
        *to = sum;
    }
}
