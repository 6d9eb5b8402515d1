// The tiles of matmul_sliced_k.cu.
#pragma once
#include "matmul_tiled_hopper.cuh"

constexpr int SLICED_ROWS = 64;
constexpr int MULTIPLYING = SLICED_GROUPS * 128, SLICED_THREADS = MULTIPLYING + 128;  // and a warp that copies for each

// Shared memory, in this order: for each warpgroup stages of x, a chunk each, at multiples of 1024 bytes, which hold
// the outputs in the end; for each stages of weights, a unit of the tile's rows each; the total; barriers.
template <int TOKENS>
struct SlicedRing : SlicedKRing<FORMAT, TOKENS> {
    using T = SlicedKRing<FORMAT, TOKENS>;
    static constexpr int box_bytes = TOKENS * 128, weight_bytes = 4 * Layout<FORMAT>::unit_bytes;
    static constexpr int weights_at = SLICED_GROUPS * T::stages * box_bytes;
    static constexpr int total_at = weights_at + SLICED_GROUPS * T::weight_stages * weight_bytes;
    static constexpr int barriers_at = total_at + TOKENS * SLICED_ROWS * 4;
    static constexpr int barrier_bytes = 8 * SLICED_GROUPS * (2 * T::stages + T::weight_stages + 1);
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
    static constexpr int STEP = MULTIPLYING / 16, COUNT = (TOKENS + STEP - 1) / STEP;
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

// Stages of x and of weights of a warpgroup, with their barriers.
template <int TOKENS>
struct SlicedStages {
    using R = SlicedRing<TOKENS>;
    u32 x, weights, x_full, x_empty, weights_full;

    DEVICE SlicedStages(u32 base, int group)
        : x(base + group * R::stages * R::box_bytes),
          weights(base + R::weights_at + group * R::weight_stages * R::weight_bytes) {
        x_full = base + R::barriers_at + 8 * (SLICED_GROUPS + group * (2 * R::stages + R::weight_stages));
        x_empty = x_full + 8 * R::stages, weights_full = x_empty + 8 * R::stages;
    }
    DEVICE void init_barriers() const {
        for (int i = 0; i < R::stages; i++) barrier_init(x_full + 8 * i, 1), barrier_init(x_empty + 8 * i, 4);
        for (int i = 0; i < R::weight_stages; i++) barrier_init(weights_full + 8 * i, 1);
    }
};

// Copies x and weights of a warpgroup. One thread calls it.
template <int TOKENS>
DEVICE void copy_slices(const HopperTiledParams& t, const SlicedStages<TOKENS>& stages, int group) {
    using R = SlicedRing<TOKENS>;
    using L = Layout<FORMAT>;
    const MatrixParams& matrix = t.tiled.matrix;
    const u8* packed = matrix.packed + (i64)blockIdx.x * matrix.num_units * R::weight_bytes;
    SlicedChunks next_weights(matrix, group), next_x(matrix, group);
    RingPlace w, x;
    auto copy_weights = [&] {
        if (!next_weights.exist(matrix)) return;
        const u32 full = stages.weights_full + 8 * w.stage;
        barrier_arrive_expecting(full, R::weight_bytes);
        copy_bulk(stages.weights + w.stage * R::weight_bytes,
                  packed + (i64)(next_weights.chunk / L::chunks) * R::weight_bytes, R::weight_bytes, full);
        next_weights.advance(matrix, L::chunks);
        w.advance(R::weight_stages);
    };
    for (int i = 0; i < R::weight_stages; i++) copy_weights();  // constants, before the wait
    wait_for_previous();
    for (int i = 0; next_x.exist(matrix) || next_weights.exist(matrix); i++) {
        // Chunk i - stages is multiplied: so the weights of all units before its own are read.
        barrier_wait(stages.x_empty + 8 * x.stage, x.phase ^ 1);
        if (i >= R::stages + L::chunks && (i - R::stages) % L::chunks == 0) copy_weights();
        if (next_x.exist(matrix)) {
            const u32 full = stages.x_full + 8 * x.stage;
            barrier_arrive_expecting(full, R::box_bytes);
            copy_box(stages.x + x.stage * R::box_bytes, t.x_map, next_x.chunk * 64, blockIdx.y * TOKENS, full);
            next_x.advance(matrix, 1);
        }
        x.advance(R::stages);
    }
}

// Makes a warpgroup's partitions. Returns whether it has the total of the tile, in `acc`.
template <int TOKENS>
DEVICE bool multiply_slices(const TiledParams& p, const SlicedStages<TOKENS>& stages, int group, u32 totals_left,
                            float4* total, Accumulators<TOKENS>& acc) {
    using R = SlicedRing<TOKENS>;
    using L = Layout<FORMAT>;
    const MatrixParams& matrix = p.matrix;
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const RowBase base = row_base(matrix, 0, blockIdx.x * 4 + warp, lane);
    const u32 own_weights = stages.weights + warp * L::unit_bytes;
    SlicedChunks work(matrix, group);
    RingPlace x, w;
    if (!work.exist(matrix)) {
        wait_for_previous();
        return false;
    }
    Raw<FORMAT> raw;
    auto load_raw = [&](int chunk) {
        const int sub = chunk % L::chunks;
        if (sub == 0) barrier_wait(stages.weights_full + 8 * w.stage, w.phase);
        raw.load_shared(own_weights + w.stage * R::weight_bytes, sub, lane);
    };
    u32 a[2][2][4];  // while one half's products run, the other half is dequantised
    acc.clear();
    load_raw(work.chunk);
    Scales<FORMAT> scales(raw, base);
    fragment_of<FORMAT>(raw, scales, 0, a[0][0]);
    fragment_of<FORMAT>(raw, scales, 1, a[0][1]);
    wait_for_previous();
    for (int round = 0;; round++) {
        const int partition = work.partition;
        do {
            barrier_wait(stages.x_full + 8 * x.stage, x.phase);
            multiply<TOKENS>(acc, a[0], stages.x + x.stage * R::box_bytes, 0);
            fragment_of<FORMAT>(raw, scales, 2, a[1][0]);
            fragment_of<FORMAT>(raw, scales, 3, a[1][1]);
            multiply<TOKENS>(acc, a[1], stages.x + x.stage * R::box_bytes, 1);
            if (work.chunk % L::chunks == L::chunks - 1) w.advance(R::weight_stages);
            work.advance(matrix, 1);
            if (work.exist(matrix)) {
                load_raw(work.chunk);
                scales = Scales<FORMAT>(raw, base);
            }
            wgmma_wait<1>();  // the first half
            fragment_of<FORMAT>(raw, scales, 0, a[0][0]);
            fragment_of<FORMAT>(raw, scales, 1, a[0][1]);
            wgmma_wait<0>();
            if (lane == 0) barrier_arrive(stages.x_empty + 8 * x.stage);
            x.advance(R::stages);
        } while (work.partition == partition);
        // Partitions are added in order: the warpgroup that has the one before leaves the total.
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
        if (partition == matrix.num_partitions - 1) return true;
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
            total[n * 128] = make_float4(acc.d[n][0], acc.d[n][1], acc.d[n][2], acc.d[n][3]);
        __syncwarp();
        if (lane == 0) barrier_arrive(totals_left + 8 * group);
        if (!work.exist(matrix)) return false;
        acc.clear();
    }
}

template <int TOKENS>
DEVICE void matmul_sliced_k(const HopperTiledParams& t) {
    using R = SlicedRing<TOKENS>;
    const TiledParams& p = t.tiled;
    extern __shared__ u8 unaligned[];
    const u32 base = (shared_address(unaligned) + 1023) & ~1023u;
    u8* const aligned = unaligned + (base - shared_address(unaligned));
    const int group = threadIdx.x < MULTIPLYING ? threadIdx.x / 128 : threadIdx.x / 32 - MULTIPLYING / 32;
    const u32 totals_left = base + R::barriers_at;  // by warpgroup: it has added a partition
    const SlicedStages<TOKENS> stages(base, group);
    if (threadIdx.x >= MULTIPLYING && threadIdx.x % 32 == 0) {
        stages.init_barriers();
        barrier_init(totals_left + 8 * group, 4);
        publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x >= MULTIPLYING) {
        if (threadIdx.x % 32 == 0) copy_slices<TOKENS>(t, stages, group);
        return;
    }
    Accumulators<TOKENS> acc;
    float4* const total = (float4*)(aligned + R::total_at) + threadIdx.x % 128;  // this thread's, 128 fours apart
    const bool has_total = multiply_slices<TOKENS>(p, stages, group, totals_left, total, acc);
    SlicedOutputs<TOKENS> outputs(p);
    outputs.load_residual();
    float* const shared = (float*)aligned;  // where x was: the products before the last partition's are finished
    if (has_total) {
        const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        float* to = shared + 2 * (lane & 3) * outputs.STRIDE + warp * 16 + (lane >> 2);
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) to[(8 * n + (i & 1)) * outputs.STRIDE + 8 * (i >> 1)] = acc.d[n][i];
    }
    asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLYING) : "memory");
    outputs.store(shared);
}
