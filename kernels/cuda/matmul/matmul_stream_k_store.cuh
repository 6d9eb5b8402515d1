// How matmul_stream_k.cu stores outputs. Each function is called by all threads of the block; `shared` is free.
#pragma once
#include "matmul_tiled_ahead.cuh"

// Outputs of float16, side by side token by token in shared memory, 128 of each.
template <int TOKENS>
DEVICE void store_halves(const TiledParams& p, const Work& work, u32 shared, const Accumulators<TOKENS>& sums) {
    constexpr int stride = 128 * 2 + 16;  // bytes: no bank conflicts
    const Epilogue epilogue(p.output, STORE_HALF);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first_row = work.first_row;
    const int row = first_row + warp * 16 + lane / 4;
    const OutputRow rows[2] = {OutputRow(p.matrix, work.expert, row), OutputRow(p.matrix, work.expert, row + 8)};
    const u32 to = shared + ((lane & 7) + (lane >> 4 << 3)) * stride + warp * 32 + (lane >> 3 & 1) * 16;
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n += 2)
        if (8 * n < work.num_tokens) {
            u32 y[4];  // rows 0..7 and 8..15 of 8 tokens, and of 8 more
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float* two = sums.d[n + j / 2] + j % 2 * 2;
                y[j] = pack_half2(epilogue.value(rows[j % 2].of(two[0]), 0.0f, NO_RESIDUAL),
                                  epilogue.value(rows[j % 2].of(two[1]), 0.0f, NO_RESIDUAL));
            }
            store_matrices_transposed(y, to + 8 * n * stride);
        }
    __syncthreads();
    const int part = threadIdx.x % 16;
    if (first_row + 8 * part >= p.matrix.num_rows) return;
    u16* out = (u16*)p.output.out + epilogue.index(work.first_token, first_row) + 8 * part;
#pragma unroll 4
    for (int token = threadIdx.x / 16; token < work.num_tokens; token += 16) {
        const float4 v = load_quad(shared + token * stride + part * 16);
        *(float4*)(out + (i64)token * p.output.stride) = v;
    }
}

// Adds outputs to what `out` holds, four at a time, which is loaded ahead: the compiler may not move a load before a
// store.
template <int TOKENS>
DEVICE void add_floats(const TiledParams& p, const Work& work, u32 shared, const Accumulators<TOKENS>& sums) {
    constexpr int BATCH = 4;
    const Epilogue epilogue(p.output, ADD_RESIDUAL);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    put_floats<TOKENS, 0, TOKENS>(work, shared, warp, lane, sums);
    const int row = work.first_row + 4 * lane;
    const OutputRow rows[4] = {OutputRow(p.matrix, work.expert, row), OutputRow(p.matrix, work.expert, row + 1),
                               OutputRow(p.matrix, work.expert, row + 2), OutputRow(p.matrix, work.expert, row + 3)};
    __syncthreads();
    if (row >= p.matrix.num_rows) return;
    float* out = (float*)p.output.out + epilogue.index(work.first_token, row);
#pragma unroll 1
    for (int first = warp; first < work.num_tokens; first += 8 * BATCH) {
        float4 old[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (first + 8 * i < work.num_tokens)
                old[i] = *(const float4*)(out + (i64)(first + 8 * i) * p.output.stride);
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int token = first + 8 * i;
            if (token >= work.num_tokens) break;
            float4 v = load_quad(shared + token * FLOATS_STRIDE + lane * 16);
            v.x = epilogue.value(rows[0].of(v.x), 0.0f, old[i].x);
            v.y = epilogue.value(rows[1].of(v.y), 0.0f, old[i].y);
            v.z = epilogue.value(rows[2].of(v.z), 0.0f, old[i].z);
            v.w = epilogue.value(rows[3].of(v.w), 0.0f, old[i].w);
            *(float4*)(out + (i64)token * p.output.stride) = v;
        }
    }
}

// `store_tile` of finished outputs, with stores of 16 bytes where they are aligned and of the usual kinds.
template <int TOKENS>
DEVICE void store_outputs(const TiledParams& p, const Work& work, u8* shared, const Accumulators<TOKENS>& sums) {
    const int kind = p.output.epilogue, alignment = kind == ADD_RESIDUAL ? 4 : 8;
    const bool is_aligned = (p.output.stride | p.output.column) % alignment == 0 && p.matrix.num_rows % 16 == 0;
    const u32 address = shared_address(shared);
    __syncthreads();
    if (is_aligned && kind == STORE_HALF)
        store_halves(p, work, address, sums);
    else if (is_aligned && kind == ADD_RESIDUAL)
        add_floats(p, work, address, sums);
    else if (is_aligned && kind == SWIGLU)
        store_gated<TOKENS, SWIGLU>(p, work, address, sums);
    else if (is_aligned && kind == GEGLU)
        store_gated<TOKENS, GEGLU>(p, work, address, sums);
    else
        store_tile(p, work, Work::NO_PARTITION, (float*)shared, sums);
}
