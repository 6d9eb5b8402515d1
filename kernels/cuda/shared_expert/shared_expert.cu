// The gate of a mixture's shared expert.
#include "../moe/experts.cuh"
#include "../norm/norm.cuh"

struct SharedGateParams {
    const u16* normed;         // [num_tokens, width]
    const float* output_gate;  // [width]
    u16* activated;            // [num_tokens, inner]
    int width, inner;          // multiples of 4
};

// A block has a token: activated *= sigmoid(output_gate normed). The product is summed as a norm sums its row.
KERNEL __launch_bounds__(32 * NORM_PARTITIONS) shared_expert_gate(const __grid_constant__ SharedGateParams p) {
    wait_for_previous();
    __shared__ float sums[NORM_PARTITIONS];
    const i64 token = blockIdx.x;
    const int partition = threadIdx.x / 32;
    float sum = 0.0f;
    for (int column = partition_column(partition); column < p.width; column += PARTITION_STEP) {
        const uint2 x = *(const uint2*)(p.normed + token * p.width + column);
        const float4 w = *(const float4*)(p.output_gate + column);
        sum = fmaf(w.x, low_half(x.x), sum), sum = fmaf(w.y, high_half(x.x), sum);
        sum = fmaf(w.z, low_half(x.y), sum), sum = fmaf(w.w, high_half(x.y), sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[partition] = sum;
    __syncthreads();
    const float share = share_of(row_sum(sums));
    for (int column = 4 * threadIdx.x; column < p.inner; column += 4 * 32 * NORM_PARTITIONS) {
        uint2* at = (uint2*)(p.activated + token * p.inner + column);
        const uint2 x = *at;
        *at = {pack_half2(low_half(x.x) * share, high_half(x.x) * share),
               pack_half2(low_half(x.y) * share, high_half(x.y) * share)};
    }
}
