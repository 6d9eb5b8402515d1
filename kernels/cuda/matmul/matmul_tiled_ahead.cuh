// The tiles of matmul_tiled.cu on Hopper for MXFP4, whose weights take few instructions to unpack: they are up to three
// groups ahead of their products, not one, and only the warps that copy keep count of what is to be copied. Large tiles
// are multiplied about as wide as they are. Otherwise this is matmul_tiled_hopper.cuh, apart from it until other
// formats have been measured with either.
#pragma once
#include "matmul_tiled_hopper.cuh"

// The groups of a block, one after the other. They begin anew with each partition, whose last one may be short.
struct Groups {
    int partition, chunk, end;  // `end` of the partition
    int stage = 0;

    DEVICE Groups(const Work& work, const MatrixParams& matrix)
        : partition(work.first_partition), chunk(work.first_chunk) {
        find_end(matrix);
    }
    DEVICE void find_end(const MatrixParams& matrix) { end = partition_start(partition + 1, matrix); }
    template <bool CAN_BE_SHORT>
    DEVICE void advance(const MatrixParams& matrix, int chunks, int stages) {
        chunk += chunks;
        if (++stage == stages) stage = 0;
        if (!CAN_BE_SHORT || chunk < end) return;
        chunk = end, partition++;
        find_end(matrix);
    }
};

// ---- storing

DEVICE float4 load_quad(u32 address) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

// Gated activations are made where both their sums are, and lie token by token in shared memory, 64 of each.
template <int TOKENS, int KIND>
DEVICE void store_gated(const TiledParams& p, const Work& work, u32 shared, const Accumulators<TOKENS>& sums) {
    constexpr int stride = 64 * 2 + 16;  // bytes: no bank conflicts
    const Epilogue epilogue(p.output, KIND);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first_row = work.first_row;
    const int row = first_row + warp * 16 + lane / 4;
    const OutputRow gate(p.matrix, work.expert, row), up(p.matrix, work.expert, row + 8);
#pragma unroll
    for (int n = 0; n < TOKENS / 8; n += 4)
        if (8 * n < work.num_tokens) {
            u32 y[4] = {};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (n + i >= TOKENS / 8) break;
                const float (&d)[4] = sums.d[n + i];
                y[i] = pack_half2(epilogue.value(gate.of(d[0]), up.of(d[2]), NO_RESIDUAL),
                                  epilogue.value(gate.of(d[1]), up.of(d[3]), NO_RESIDUAL));
            }
            store_matrices_transposed(y, shared + (8 * n + lane) * stride + warp * 16);
        }
    __syncthreads();
    const int part = threadIdx.x % 8;
    if (first_row + 16 * part >= p.matrix.num_rows) return;
    u16* out = (u16*)p.output.out + epilogue.index(work.first_token, first_row) + 8 * part;
    for (int token = threadIdx.x / 8; token < work.num_tokens; token += 32) {
        const float4 v = load_quad(shared + token * stride + part * 16);
        *(float4*)(out + (i64)token * p.output.stride) = v;
    }
}

constexpr int FLOATS_STRIDE = (128 + 4) * 4;  // bytes of a token's outputs in shared memory: no bank conflicts

// Sums of COUNT tokens from FIRST on into shared memory, token by token, 128 of each.
template <int TOKENS, int FIRST, int COUNT>
DEVICE void put_floats(const Work& work, u32 shared, int warp, int lane, const Accumulators<TOKENS>& sums) {
    const u32 to = shared + 2 * (lane % 4) * FLOATS_STRIDE + (warp * 16 + lane / 4) * 4;
#pragma unroll
    for (int n = 0; n < COUNT / 8; n++)
        if (FIRST + 8 * n < work.num_tokens)
#pragma unroll
            for (int i = 0; i < 4; i++)
                asm volatile("st.shared.f32 [%0], %1;"
                             :
                             : "r"(to + (8 * n + i % 2) * FLOATS_STRIDE + i / 2 * 32), "f"(sums.d[FIRST / 8 + n][i])
                             : "memory");
}

// Sums of COUNT tokens from FIRST on as they are, four at a time.
template <int TOKENS, int FIRST = 0, int COUNT = TOKENS>
DEVICE void store_floats(const TiledParams& p, const Work& work, u32 shared, const Accumulators<TOKENS>& sums) {
    const Epilogue epilogue(p.output, STORE_FLOAT);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    put_floats<TOKENS, FIRST, COUNT>(work, shared, warp, lane, sums);
    const int row = work.first_row + 4 * lane;
    const OutputRow rows[4] = {OutputRow(p.matrix, work.expert, row), OutputRow(p.matrix, work.expert, row + 1),
                               OutputRow(p.matrix, work.expert, row + 2), OutputRow(p.matrix, work.expert, row + 3)};
    __syncthreads();
    if (row >= p.matrix.num_rows) return;
    float* out = (float*)p.output.out + epilogue.index(work.first_token + FIRST, row);
    const int num_tokens = min(COUNT, work.num_tokens - FIRST);
#pragma unroll 4
    for (int token = warp; token < num_tokens; token += 8) {
        float4 v = load_quad(shared + token * FLOATS_STRIDE + lane * 16);
        v.x = epilogue.value(rows[0].of(v.x), 0.0f, NO_RESIDUAL),
        v.y = epilogue.value(rows[1].of(v.y), 0.0f, NO_RESIDUAL);
        v.z = epilogue.value(rows[2].of(v.z), 0.0f, NO_RESIDUAL),
        v.w = epilogue.value(rows[3].of(v.w), 0.0f, NO_RESIDUAL);
        *(float4*)(out + (i64)token * p.output.stride) = v;
    }
}

// `store_tile` with stores of 16 bytes, for what experts are asked for. All threads of the block call it.
template <int TOKENS>
DEVICE void store_wide(const TiledParams& p, const Work& work, int partition, u8* shared,
                       const Accumulators<TOKENS>& sums) {
    const int kind = p.output.epilogue, alignment = kind == STORE_FLOAT ? 4 : 8;
    const bool is_aligned = (p.output.stride | p.output.column) % alignment == 0 && p.matrix.num_rows % 16 == 0;
    if (partition > Work::NO_PARTITION || !is_aligned ||
        (kind != SWIGLU && kind != CLAMPED_SWIGLU && kind != STORE_FLOAT)) {
        store_tile(p, work, partition, (float*)shared, sums);
        return;
    }
    __syncthreads();
    const u32 address = shared_address(shared);
    if (kind == SWIGLU) store_gated<TOKENS, SWIGLU>(p, work, address, sums);
    if (kind == CLAMPED_SWIGLU) store_gated<TOKENS, CLAMPED_SWIGLU>(p, work, address, sums);
    if (kind == STORE_FLOAT) store_floats(p, work, address, sums);
}

// ---- multiplying

// A tile of up to WIDTH tokens.
template <int TOKENS, int WIDTH>
DEVICE void multiply_tile(const HopperTiledParams& t, const Work& work) {
    using R = Ring<TOKENS>;
    static_assert(Layout<FORMAT>::chunks == 1 && !Layout<FORMAT>::has_grid, "a unit is a chunk");
    constexpr bool sums_partitions = TOKENS <= SUMMING_TOKENS;
    const TiledParams& p = t.tiled;
    const MatrixParams& matrix = p.matrix;
    extern __shared__ u8 unaligned[];
    const u32 x_stages = (shared_address(unaligned) + 1023) & ~1023u;
    const u32 weight_stages = x_stages + R::stages * R::x_bytes;
    const u32 x_full = x_stages + R::barriers_at, weights_full = x_full + 8 * R::stages;
    const int warp = __shfl_sync(ALL_LANES, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    // The warp that issues copies falls behind with its own work: in tiles whose chunks take little time, two share
    // that.
    const bool copies_x = warp == 0, copies_weights = warp == (TOKENS > 128 ? 0 : 4);
    const int first_block = blockIdx.x * 2, num_blocks = min(2, (matrix.num_rows + 63) / 64 - first_block);
    const u8* weights = matrix.packed + work.expert * matrix.expert_bytes;
    constexpr bool can_be_short = R::group > 1;
    Groups next_x(work, matrix), next_weights(work, matrix);  // that are to be copied
    auto copy_next_weights = [&] {
        if (!copies_weights) return;
        const int chunk = next_weights.chunk, end = can_be_short ? next_weights.end : work.last_chunk;
        const int bytes = min(R::units, end - chunk) * R::block_bytes;
        const u32 to = weight_stages + next_weights.stage * R::weight_bytes,
                  full = weights_full + 8 * next_weights.stage;
        const bool exists = chunk < work.last_chunk;
        next_weights.advance<can_be_short>(matrix, R::group, R::weight_stages);
        if (lane || !exists) return;
        barrier_arrive_expecting(full, num_blocks * bytes);
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (i < num_blocks)
                copy_bulk(to + i * R::units * R::block_bytes,
                          weights + ((i64)(first_block + i) * matrix.num_units + chunk) * R::block_bytes, bytes, full);
    };
    auto copy_next_x = [&] {
        if (!copies_x) return;
        const int chunk = next_x.chunk;
        const u32 to = x_stages + next_x.stage * R::x_bytes, full = x_full + 8 * next_x.stage;
        next_x.advance<can_be_short>(matrix, R::group, R::stages);
        if (lane || chunk >= work.last_chunk) return;
        barrier_arrive_expecting(full, R::x_bytes);
#pragma unroll
        for (int i = 0; i < R::group; i++)
            copy_box(to + i * R::box_bytes, t.x_map, (chunk + i) * 64, work.first_token, full);
    };
    if (threadIdx.x == 0) {
        for (int i = 0; i < R::stages; i++) barrier_init(x_full + 8 * i, 1);
        for (int i = 0; i < R::weight_stages; i++) barrier_init(weights_full + 8 * i, 1);
        publish_barriers();
    }
    __syncthreads();
    for (int i = 0; i < R::weight_stages - 1; i++) copy_next_weights();  // constants, before the wait
    prefetch_rows(p, work);
    if (!p.tiles) wait_for_previous();
    for (int i = 0; i < R::stages - 2; i++) copy_next_x();

    const int tile = blockIdx.x * 8 + warp;
    const RowBase base = row_base(matrix, work.expert, tile, lane);
    const u32 own_weights =
        weight_stages + warp / 4 * R::units * R::block_bytes + warp % 4 * Layout<FORMAT>::unit_bytes;
    Accumulators<WIDTH> acc;
    Accumulators<sums_partitions ? WIDTH : 8> total;
    acc.clear(), total.clear();
    RingPlace x, w;  // which stages the group is in
    for (int partition = work.first_partition, chunk = work.first_chunk; partition < work.last_partition; partition++) {
        const int end = partition_start(partition + 1, matrix);
        for (; chunk < end; chunk += R::group) {
            // Everybody has read the weights of the group before and finished the products of the one before that.
            __syncthreads();
            copy_next_x();
            copy_next_weights();
            barrier_wait(weights_full + 8 * w.stage, w.phase);
            const u32 x_stage = x_stages + x.stage * R::x_bytes, weight_stage = own_weights + w.stage * R::weight_bytes;
#pragma unroll
            for (int i = 0; i < R::group; i++) {
                if (can_be_short && chunk + i >= end) break;
                Raw<FORMAT> raw;
                raw.load_shared(weight_stage + i * R::block_bytes, 0, lane);
                const Scales<FORMAT> scales(raw, base);
                u32 a[2][2][4];  // while one half's products run, the other half is dequantised
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    wgmma_wait<1>();
                    fragment_of<FORMAT>(raw, scales, 2 * half, a[half][0]);
                    fragment_of<FORMAT>(raw, scales, 2 * half + 1, a[half][1]);
                    if (i == 0 && half == 0) barrier_wait(x_full + 8 * x.stage, x.phase);
                    multiply<WIDTH>(acc, a[half], x_stage + i * R::box_bytes, half);
                }
            }
            x.advance(R::stages), w.advance(R::weight_stages);
        }
        chunk = end;
        wgmma_wait<0>();
        if constexpr (sums_partitions) {
            total.add(acc);
            acc.clear();
        }
    }
    u8* const free = unaligned + (x_stages - shared_address(unaligned));  // the rings
    const int partition = work.partition_to_leave();
    if constexpr (sums_partitions)
        store_wide(p, work, partition, free, total);
    else
        store_wide(p, work, partition, free, acc);
}

template <int TOKENS>
DEVICE void matmul_tiled_ahead(const HopperTiledParams& t) {
    Work work;
    if (!work.find(t.tiled, TOKENS)) return;
    if constexpr (TOKENS == 256) {
        if (work.num_tokens <= 128)
            multiply_tile<TOKENS, 128>(t, work);
        else if (work.num_tokens <= 192)
            multiply_tile<TOKENS, 192>(t, work);
        else if (work.num_tokens <= 224)
            multiply_tile<TOKENS, 224>(t, work);
        else
            multiply_tile<TOKENS, TOKENS>(t, work);
    } else
        multiply_tile<TOKENS, TOKENS>(t, work);
}
