// The tiles of matmul_sliced_k.cu.
#pragma once
#include "matmul_tiled_hopper.cuh"

constexpr int SLICED_ROWS = 64, SLICED_THREADS = SLICED_GROUPS * 128;

// Shared memory, in this order: for each warpgroup stages of x, a chunk each, at multiples of 1024 bytes, which hold
// the outputs in the end; for each stages of weights, a unit of the tile's rows each; the total; barriers.
template <int TOKENS>
struct SlicedRing : SlicedKRing<FORMAT, TOKENS> {
    using T = SlicedKRing<FORMAT, TOKENS>;
    static constexpr int box_bytes = TOKENS * 128, weight_bytes = 4 * Layout<FORMAT>::unit_bytes;
    static constexpr int weights_at = SLICED_GROUPS * T::stages * box_bytes;
    static constexpr int total_at = weights_at + SLICED_GROUPS * T::weight_stages * weight_bytes;
    static constexpr int barriers_at = total_at + TOKENS * SLICED_ROWS * 4;
    static constexpr int barrier_bytes = 8 * SLICED_GROUPS * (T::stages + T::weight_stages + 1);
    static_assert(1024 + barriers_at + barrier_bytes <= T::num_bytes, "see `sliced_k_ring`");
    static_assert(T::stages >= 3, "a stage is filled while another one is read and products of a third still run");
};

// The chunks of a warpgroup, partition by partition: every SLICED_GROUPS'th is its.
struct SlicedChunks {
    int partition, chunk, end;

    DEVICE SlicedChunks(const MatrixParams& matrix, int group) : partition(group) { find(matrix); }
    DEVICE bool exist(const MatrixParams& matrix) const { return partition < matrix.num_partitions; }
    DEVICE void advance(const MatrixParams& matrix, int step) {
        if ((chunk += step) < end) return;
        partition += SLICED_GROUPS;
        find(matrix);
    }

   private:
    DEVICE void find(const MatrixParams& matrix) {
        chunk = partition_start(partition, matrix) * Layout<FORMAT>::chunks;
        end = partition_start(partition + 1, matrix) * Layout<FORMAT>::chunks;
    }
};

// Stores the tile's outputs, which lie token by token in shared memory. Aligned ones: `is_suitable` of
// kernels/ops/sliced_k/sliced_k_matmul.py.
template <int TOKENS>
struct SlicedOutputs {
    static constexpr int STRIDE = SLICED_ROWS + 4;  // no bank conflicts
    static constexpr int STEP = SLICED_THREADS / 16, COUNT = (TOKENS + STEP - 1) / STEP;
    const TiledParams& p;
    const Epilogue epilogue;
    const int row, first_token, num_tokens;
    float4 old[COUNT];

    DEVICE SlicedOutputs(const TiledParams& p)
        : p(p),
          epilogue(p.output),
          row(blockIdx.x * SLICED_ROWS + threadIdx.x % 16 * 4),
          first_token(blockIdx.y * TOKENS),
          num_tokens(min(TOKENS, p.num_tokens - first_token)) {}
    DEVICE bool has(int i) const { return row < p.matrix.num_rows && token(i) < num_tokens; }
    DEVICE int token(int i) const { return threadIdx.x / 16 + i * STEP; }
    DEVICE i64 index(int i) const { return epilogue.index(first_token + token(i), row); }
    DEVICE void load_residual() {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            old[i] = make_float4(NO_RESIDUAL, NO_RESIDUAL, NO_RESIDUAL, NO_RESIDUAL);
            if (epilogue.kind == ADD_RESIDUAL && has(i)) old[i] = *(const float4*)((float*)p.output.out + index(i));
        }
    }
    DEVICE void store(const float* shared) const {
        OutputRow rows[4];
#pragma unroll
        for (int j = 0; j < 4; j++) rows[j] = OutputRow(p.matrix, 0, row + j);
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (!has(i)) continue;
            float4 y = *(const float4*)(shared + token(i) * STRIDE + threadIdx.x % 16 * 4);
            y.x = epilogue.value(rows[0].of(y.x), 0.0f, old[i].x),
            y.y = epilogue.value(rows[1].of(y.y), 0.0f, old[i].y);
            y.z = epilogue.value(rows[2].of(y.z), 0.0f, old[i].z),
            y.w = epilogue.value(rows[3].of(y.w), 0.0f, old[i].w);
            void* to = epilogue.address(index(i));
            if (epilogue.is_float())
                *(float4*)to = y;
            else
                *(uint2*)to = make_uint2(pack_half2(y.x, y.y), pack_half2(y.z, y.w));
        }
    }
};

// Waits for the warps of a warpgroup.
DEVICE void sync_warpgroup(int group) { asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory"); }

template <int TOKENS>
DEVICE void matmul_sliced_k(const HopperTiledParams& t) {
    using R = SlicedRing<TOKENS>;
    using L = Layout<FORMAT>;
    const TiledParams& p = t.tiled;
    const MatrixParams& matrix = p.matrix;
    extern __shared__ u8 unaligned[];
    const u32 base = (shared_address(unaligned) + 1023) & ~1023u;
    u8* const aligned = unaligned + (base - shared_address(unaligned));
    const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const bool copies = threadIdx.x % 128 == 0;
    const u32 x_stages = base + group * R::stages * R::box_bytes;
    const u32 weight_stages = base + R::weights_at + group * R::weight_stages * R::weight_bytes;
    const u32 barriers = base + R::barriers_at, totals_left = barriers;  // by group: it has added a partition
    const u32 x_full = barriers + 8 * (SLICED_GROUPS + group * (R::stages + R::weight_stages));
    const u32 weights_full = x_full + 8 * R::stages;
    const u8* weights = matrix.packed + (i64)blockIdx.x * matrix.num_units * R::weight_bytes;
    SlicedChunks next_weights(matrix, group), next_x(matrix, group), work(matrix, group);
    RingPlace next_w_place, next_x_place, x, w;
    auto copy_next_weights = [&] {
        if (!copies || !next_weights.exist(matrix)) return;
        const u32 full = weights_full + 8 * next_w_place.stage;
        barrier_arrive_expecting(full, R::weight_bytes);
        copy_bulk(weight_stages + next_w_place.stage * R::weight_bytes,
                  weights + (i64)(next_weights.chunk / L::chunks) * R::weight_bytes, R::weight_bytes, full);
        next_weights.advance(matrix, L::chunks);
        next_w_place.advance(R::weight_stages);
    };
    auto copy_next_x = [&] {
        if (!copies || !next_x.exist(matrix)) return;
        const u32 full = x_full + 8 * next_x_place.stage;
        barrier_arrive_expecting(full, R::box_bytes);
        copy_box(x_stages + next_x_place.stage * R::box_bytes, t.x_map, next_x.chunk * 64, blockIdx.y * TOKENS, full);
        next_x.advance(matrix, 1);
        next_x_place.advance(R::stages);
    };
    if (copies) {
        for (int i = 0; i < R::stages; i++) barrier_init(x_full + 8 * i, 1);
        for (int i = 0; i < R::weight_stages; i++) barrier_init(weights_full + 8 * i, 1);
        barrier_init(totals_left + 8 * group, 4);
        publish_barriers();
        for (int i = 0; i < R::weight_stages - 1; i++) copy_next_weights();  // constants, before the wait
    }
    wait_for_previous();
    for (int i = 0; i < R::stages - 2; i++) copy_next_x();
    __syncthreads();  // barriers are there
    const RowBase row_base_ = row_base(matrix, 0, blockIdx.x * 4 + warp, lane);
    const u32 own_weights = weight_stages + warp * L::unit_bytes;
    float4* const total = (float4*)(aligned + R::total_at) + threadIdx.x % 128;  // this thread's, 128 fours apart
    Accumulators<TOKENS> acc;
    for (int round = 0; work.exist(matrix); round++) {
        const int partition = work.partition;
        acc.clear();
        while (work.partition == partition) {
            // All have read the weights of the chunk before and finished the products of the one before that.
            sync_warpgroup(group);
            copy_next_x();
            const int sub = work.chunk % L::chunks;
            if (sub == 0) {
                copy_next_weights();
                barrier_wait(weights_full + 8 * w.stage, w.phase);
            }
            Raw<FORMAT> raw;
            raw.load_shared(own_weights + w.stage * R::weight_bytes, sub, lane);
            const Scales<FORMAT> scales(raw, row_base_);
            u32 a[2][2][4];  // while one half's products run, the other half is dequantised
#pragma unroll
            for (int half = 0; half < 2; half++) {
                wgmma_wait<1>();
                fragment_of<FORMAT>(raw, scales, 2 * half, a[half][0]);
                fragment_of<FORMAT>(raw, scales, 2 * half + 1, a[half][1]);
                if (half == 0) barrier_wait(x_full + 8 * x.stage, x.phase);
                multiply<TOKENS>(acc, a[half], x_stages + x.stage * R::box_bytes, half);
            }
            x.advance(R::stages);
            if (sub == L::chunks - 1) w.advance(R::weight_stages);
            work.advance(matrix, 1);
        }
        wgmma_wait<0>();
        // Partitions are added in order: the group that has the one before leaves the total.
        if (partition > 0) {
            const int before = (partition - 1) % SLICED_GROUPS;
            barrier_wait(totals_left + 8 * before, (before < group ? round : round - 1) & 1);
#pragma unroll
            for (int n = 0; n < TOKENS / 8; n++) {
                const float4 sum = total[n * 128];
                float (&d)[4] = acc.d[n];
                d[0] = sum.x + d[0], d[1] = sum.y + d[1], d[2] = sum.z + d[2], d[3] = sum.w + d[3];
            }
        }
        if (partition == matrix.num_partitions - 1) break;
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
            total[n * 128] = make_float4(acc.d[n][0], acc.d[n][1], acc.d[n][2], acc.d[n][3]);
        __syncwarp();
        if (lane == 0) barrier_arrive(totals_left + 8 * group);
    }
    SlicedOutputs<TOKENS> outputs(p);
    outputs.load_residual();
    float* const shared = (float*)aligned;  // where x was: the last group's products are the last to be finished
    if (group == (matrix.num_partitions - 1) % SLICED_GROUPS) {
        float* to = shared + 2 * (lane & 3) * outputs.STRIDE + warp * 16 + (lane >> 2);
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) to[(8 * n + (i & 1)) * outputs.STRIDE + 8 * (i >> 1)] = acc.d[n][i];
    }
    __syncthreads();
    outputs.store(shared);
}
