// Gated short convolutions (LFM2): C * convolution(B * x).
//   convolution_gated  a thread has four channels of a token
//   convolution_keep   a thread has four channels of a sequence, whose last inputs become its state
#include "convolution.cuh"

struct ShortConvolutionParams {
    const u16* projected;  // [num_tokens, 3 * channels] B, C and x
    u16* out;              // [num_tokens, channels]
    ConvolutionParams convolution;
};

struct GatedInput {
    const ShortConvolutionParams& p;

    DEVICE float4 operator()(i32 token, int channel) const {
        const int channels = p.convolution.channels;
        const u16* row = p.projected + (i64)token * 3 * channels + channel;
        const float4 b = load_halves(row), x = load_halves(row + 2 * channels);
        return {b.x * x.x, b.y * x.y, b.z * x.z, b.w * x.w};
    }
};

KERNEL __launch_bounds__(THREADS) convolution_gated(const __grid_constant__ ShortConvolutionParams p) {
    wait_for_previous();
    const int channels = p.convolution.channels, channel = 4 * (blockIdx.y * THREADS + threadIdx.x);
    const i32 token = blockIdx.x;
    if (channel >= channels) return;
    uint2* out = (uint2*)(p.out + (i64)token * channels + channel);
    if (p.convolution.positions[token] < 0) {
        *out = {0, 0};
        return;
    }
    const float4 sum = convolve(p.convolution, token, channel, GatedInput{p});
    const float4 c = load_halves(p.projected + (i64)token * 3 * channels + channels + channel);
    *out = {pack_half2(sum.x * c.x, sum.y * c.y), pack_half2(sum.z * c.z, sum.w * c.w)};
}

KERNEL __launch_bounds__(THREADS) convolution_keep(const __grid_constant__ ShortConvolutionParams p) {
    wait_for_previous();
    const int channel = 4 * (blockIdx.y * THREADS + threadIdx.x);
    const i32 sequence = blockIdx.x;
    if (channel >= p.convolution.channels || p.convolution.states.slots[sequence] < 0) return;
    keep_inputs(p.convolution, sequence, channel, GatedInput{p});
}
