// The gate of a mixture's shared expert.
#include "../common/common.cuh"

struct SharedGateParams {
    const u16* normed;         // [num_tokens, width]
    const float* output_gate;  // [width]
    u16* activated;            // [num_tokens, inner]
    int width, inner;          // multiples of 4
};

constexpr int WARPS = 4;

// A block has a token: activated *= sigmoid(output_gate normed).
KERNEL __launch_bounds__(32 * WARPS) shared_expert_gate(const __grid_constant__ SharedGateParams p) {
    wait_for_previous();
    __shared__ float sums[WARPS];
    const i64 token = blockIdx.x;
    float sum = 0.0f;
    for (int column = 4 * threadIdx.x; column < p.width; column += 4 * 32 * WARPS) {
        const uint2 x = *(const uint2*)(p.normed + token * p.width + column);
        const float4 w = *(const float4*)(p.output_gate + column);
        sum = fmaf(low_half(x.x), w.x, sum), sum = fmaf(high_half(x.x), w.y, sum);
        sum = fmaf(low_half(x.y), w.z, sum), sum = fmaf(high_half(x.y), w.w, sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    const float share = 1.0f / (1.0f + __expf(-((sums[0] + sums[1]) + (sums[2] + sums[3]))));
    for (int column = 4 * threadIdx.x; column < p.inner; column += 4 * 32 * WARPS) {
        uint2* at = (uint2*)(p.activated + token * p.inner + column);
        const uint2 x = *at;
        *at = {pack_half2(low_half(x.x) * share, high_half(x.x) * share),
               pack_half2(low_half(x.y) * share, high_half(x.y) * share)};
    }
}
