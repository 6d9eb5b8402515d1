// The tiles of matmul_stream_k.cu.
#pragma once
#include "matmul_stream_k_store.cuh"

// By block: how many others have left their sums of the tile that it finishes. Zero between kernels.
__device__ int arrivals[MAX_BLOCKS];

// What the parts of a tile are: its partitions, the whole, or CHAIN_PARTS ranges of the units of its only partition.
enum Cut { PARTITIONS, WHOLE, CHAIN };

// The parts of tiles that a block has: [next, last) of all.
template <Cut CUT>
struct Range {
    int block, parts_of_block, num_parts, num_token_tiles;  // num_parts: of a tile
    int next, last;

    // Blocks wait only for blocks that started before them: for parts that come later in the range, which the last
    // blocks begin, or of a chain earlier.
    DEVICE Range(const StreamKParams& s, int tokens)
        : block(CUT == CHAIN ? blockIdx.x : gridDim.x - 1 - blockIdx.x),
          parts_of_block(s.parts_of_block),
          num_parts(CUT == CHAIN   ? CHAIN_PARTS
                    : CUT == WHOLE ? 1
                                   : s.hopper.tiled.matrix.num_partitions),
          num_token_tiles((s.hopper.tiled.num_tokens + tokens - 1) / tokens),
          next(first_of(block)) {
        const int num_tiles = (s.hopper.tiled.matrix.num_rows + 127) / 128 * num_token_tiles;
        last = min(first_of(block + 1), num_tiles * num_parts);
    }
    DEVICE int first_of(int block) const { return block * parts_of_block; }
    DEVICE int block_of(int part) const { return part / parts_of_block; }

    // What the block has of its next tile, as partitions of `work`. Returns false if there is no more. `tile_part`: the
    // tile's first part.
    DEVICE bool find(const TiledParams& p, int tokens, Work& work, int& tile_part) {
        if (next >= last) return false;
        const int tile = (CUT == CHAIN ? last - 1 : next) / num_parts;
        tile_part = tile * num_parts;
        const int first = max(next, tile_part) - tile_part, end = min(last - tile_part, num_parts);
        const int row_tile = tile / num_token_tiles;
        work.first_row = row_tile * 128, work.expert = 0;
        work.first_token = (tile - row_tile * num_token_tiles) * tokens;
        work.num_tokens = min(tokens, p.num_tokens - work.first_token);
        if constexpr (CUT == CHAIN) {
            work.first_partition = first, work.last_partition = end;
            work.first_chunk = first * p.matrix.num_units / num_parts * Layout<FORMAT>::chunks;
            work.last_chunk = end * p.matrix.num_units / num_parts * Layout<FORMAT>::chunks;
            last = tile_part + first;
        } else {
            work.find_chunks(p.matrix, first, CUT == WHOLE ? p.matrix.num_partitions : end);
            next = tile_part + end;
        }
        return true;
    }
};

// Sums of a tile in memory, in the order that threads have them: those of a partition that a block leaves to others,
// or the total of its own while it makes the next.
template <int TOKENS>
struct SumsInMemory {
    float4* own;  // this thread's, 256 fours apart

    DEVICE SumsInMemory(const StreamKParams& p, int block, int place)
        : own((float4*)p.hopper.tiled.partials + ((i64)block * p.num_places + place) * (TOKENS / 8 * 256) +
              threadIdx.x) {}
    DEVICE void store(const Accumulators<TOKENS>& sums) const {
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
            __stcg(own + n * 256, make_float4(sums.d[n][0], sums.d[n][1], sums.d[n][2], sums.d[n][3]));
    }
    // Zeros where they are not there. (The compiler wants products to follow no branch.)
    DEVICE void load_if(bool exist, Accumulators<TOKENS>& sums) const {
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++) {
            float (&d)[4] = sums.d[n];
            asm volatile(
                "{.reg .pred p; setp.ne.u32 p, %5, 0; mov.f32 %0, 0f00000000; mov.f32 %1, 0f00000000; mov.f32 %2, "
                "0f00000000; mov.f32 %3, 0f00000000; @p ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];}"
                : "=&f"(d[0]), "=&f"(d[1]), "=&f"(d[2]), "=&f"(d[3])
                : "l"(own + n * 256), "r"((u32)exist)
                : "memory");
        }
    }
    DEVICE void add_to(Accumulators<TOKENS>& sums) const {
        constexpr int BATCH = TOKENS > 128 ? 8 : 16;  // loads on their way
#pragma unroll
        for (int first = 0; first < TOKENS / 8; first += BATCH) {
            float4 more[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) more[i] = load_now(own + (first + i) * 256);
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                float (&d)[4] = sums.d[first + i];
                d[0] += more[i].x, d[1] += more[i].y, d[2] += more[i].z, d[3] += more[i].w;
            }
        }
    }

   private:
    // In this order among loads: there are no registers for more of them at once.
    DEVICE static float4 load_now(const float4* from) {
        float4 v;
        asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                     : "l"(from)
                     : "memory");
        return v;
    }
};

// Says to `block` that this one has left sums. All threads call it.
DEVICE void arrive_at(int block) {
    __syncthreads();
    if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(arrivals + block) : "memory");
}

// Waits until so many others have left sums. All threads call it.
DEVICE void wait_for_sums(int block, int num_blocks) {
    if (threadIdx.x == 0) {
        int arrived;
        do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(arrived) : "l"(arrivals + block) : "memory");
        while (arrived < num_blocks);
        arrivals[block] = 0;
    }
    __syncthreads();
}

template <int TOKENS, Cut CUT>
DEVICE void matmul_stream_k(const StreamKParams& s) {
    using R = Ring<TOKENS>;
    using L = Layout<FORMAT>;
    constexpr bool keeps_total = TOKENS <= SUMMING_TOKENS && CUT != CHAIN;  // in registers
    static_assert(TOKENS * (128 + 4) * 4 <= R::stages * R::x_bytes, "outputs lie where x was, beside the next weights");
    const TiledParams& p = s.hopper.tiled;
    const MatrixParams& matrix = p.matrix;
    load_grid();
    extern __shared__ u8 unaligned[];
    const u32 x_stages = (shared_address(unaligned) + 1023) & ~1023u;
    const u32 weight_stages = x_stages + R::stages * R::x_bytes;
    const u32 x_full = x_stages + R::barriers_at, weights_full = x_full + 8 * R::stages;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool copies_x = threadIdx.x == 0, copies_weights = threadIdx.x == 128;
    Range<CUT> range(s, TOKENS);
    Work work;
    int tile_part = 0;
    range.find(p, TOKENS, work, tile_part);
    auto copy_weights = [&](int unit, int stage) {
        const int bytes = min(R::units, work.last_chunk / L::chunks - unit) * R::block_bytes;
        if (bytes <= 0) return;
        const int first_block = work.first_row / 64, num_blocks = min(2, (matrix.num_rows + 63) / 64 - first_block);
        const u32 to = weight_stages + stage * R::weight_bytes, full = weights_full + 8 * stage;
        barrier_arrive_expecting(full, num_blocks * bytes);
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (i < num_blocks)
                copy_bulk(to + i * R::units * R::block_bytes,
                          matrix.packed + ((i64)(first_block + i) * matrix.num_units + unit) * R::block_bytes, bytes,
                          full);
    };
    auto copy_x = [&](int chunk, int stage) {
        if (chunk >= work.last_chunk) return;
        const u32 to = x_stages + stage * R::x_bytes, full = x_full + 8 * stage;
        barrier_arrive_expecting(full, R::x_bytes);
#pragma unroll
        for (int i = 0; i < R::group; i++)
            copy_box(to + i * R::box_bytes, s.hopper.x_map, (chunk + i) * 64, work.first_token, full);
    };
    // Whether the block finishes the tile: it has its first partition, or the end of a chain.
    auto finishes = [&] { return CUT == CHAIN ? work.last_partition == range.num_parts : work.first_partition == 0; };
    RingPlace x, w;  // which stages the group is in
    auto copy_first_weights = [&] {
        for (int i = 0, stage = w.stage; i < R::weight_stages - 1; i++) {
            if (copies_weights) copy_weights(work.first_chunk / L::chunks + i, stage);
            if (++stage == R::weight_stages) stage = 0;
        }
    };
    if (threadIdx.x == 128) {
        for (int i = 0; i < R::stages; i++) barrier_init(x_full + 8 * i, 1);
        for (int i = 0; i < R::weight_stages; i++) barrier_init(weights_full + 8 * i, 1);
        publish_barriers();
    }
    copy_first_weights();  // constants, before the wait
    if (finishes()) prefetch_rows(p, work);
    wait_for_previous();
    // Groups begin anew with each partition, whose last one may be short; not so where units are wider than a group.
    constexpr bool can_be_short = R::group > 1 && !L::is_k;
    int next_partition = 0, next_x = 0, next_stage = 0, next_end = 0;  // the next group of x to copy
    auto copy_next_x = [&] {
        if (copies_x) copy_x(next_x, next_stage);
        next_x += R::group;
        if (++next_stage == R::stages) next_stage = 0;
        if (can_be_short && next_x >= next_end)
            next_x = next_end, next_end = partition_start(++next_partition + 1, matrix) * L::chunks;
    };
    auto copy_first_x = [&] {
        next_partition = work.first_partition, next_x = work.first_chunk, next_stage = x.stage;
        next_end = partition_start(next_partition + 1, matrix) * L::chunks;
        for (int i = 0; i < R::stages - 2; i++) copy_next_x();
    };
    __syncthreads();  // barriers are there
    copy_first_x();
    while (true) {
        const bool leaves = !finishes();
        const RowBase base = row_base(matrix, 0, work.first_row / 16 + warp, lane);
        const u32 own_weights = weight_stages + warp / 4 * R::units * R::block_bytes + warp % 4 * L::unit_bytes;
        Accumulators<TOKENS> acc;
        Accumulators<keeps_total ? TOKENS : 8> total;
        total.clear();
        if constexpr (CUT == CHAIN) {
            const bool goes_on = work.first_partition > 0;
            if (goes_on) wait_for_sums(range.block, 1);
            SumsInMemory<TOKENS>(s, max(range.block - 1, 0), 0).load_if(goes_on, acc);
        } else {
            acc.clear();
        }
        for (int partition = CUT == CHAIN ? work.last_partition - 1 : work.first_partition, chunk = work.first_chunk;
             partition < work.last_partition; partition++) {
            const int end = CUT == CHAIN ? work.last_chunk : partition_start(partition + 1, matrix) * L::chunks;
            for (; chunk < end; chunk += R::group) {
                // Everybody has read the weights of the group before and finished the products of the one before that.
                __syncthreads();
                copy_next_x();
                const int sub = chunk % L::chunks;
                if (sub == 0) {
                    const int unit =
                        can_be_short ? min(chunk + R::group, end) : chunk / L::chunks + R::weight_stages - 1;
                    if (copies_weights) copy_weights(unit, w.stage == 0 ? R::weight_stages - 1 : w.stage - 1);
                    barrier_wait(weights_full + 8 * w.stage, w.phase);
                }
                const u32 x_stage = x_stages + x.stage * R::x_bytes;
                const u32 weight_stage = own_weights + w.stage * R::weight_bytes;
#pragma unroll
                for (int i = 0; i < R::group; i++) {
                    if (can_be_short && chunk + i >= end) break;
                    Raw<FORMAT> raw;
                    if (L::is_k)
                        raw.load_shared(weight_stage, sub + i, lane);
                    else
                        raw.load_shared(weight_stage + i * R::block_bytes, 0, lane);
                    const Scales<FORMAT> scales(raw, base);
                    u32 a[2][2][4];  // while one half's products run, the other half is dequantised
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        wgmma_wait<1>();
                        fragment_of<FORMAT>(raw, scales, 2 * half, a[half][0]);
                        fragment_of<FORMAT>(raw, scales, 2 * half + 1, a[half][1]);
                        if (i == 0 && half == 0) barrier_wait(x_full + 8 * x.stage, x.phase);
                        multiply<TOKENS>(acc, a[half], x_stage + i * R::box_bytes, half);
                    }
                }
                x.advance(R::stages);
                if (!L::is_k || sub + R::group == L::chunks) w.advance(R::weight_stages);
            }
            chunk = end;
            wgmma_wait<0>();
            if (leaves) {
                const int place = CUT == CHAIN ? 0 : tile_part + partition - range.first_of(range.block);
                SumsInMemory<TOKENS>(s, range.block, place).store(acc);
                acc.clear();
            } else if constexpr (CUT == CHAIN) {
            } else if constexpr (keeps_total) {
                total.add(acc);
                acc.clear();
            } else {
                const SumsInMemory<TOKENS> total(s, range.block, s.num_places - 1);
                if (partition > 0) total.add_to(acc);
                if (partition + 1 < work.last_partition) {
                    total.store(acc);
                    acc.clear();
                }
            }
        }
        const Work done = work;
        const int done_part = tile_part;
        __syncthreads();  // all have read the last weights
        const bool has_more = range.find(p, TOKENS, work, tile_part);
        if (has_more) copy_first_weights();
        if (leaves) {
            if (has_more) copy_first_x();
            arrive_at(CUT == CHAIN ? range.block + 1 : range.block_of(done_part));
        } else {
            auto& sums = [&]() -> auto& {
                if constexpr (keeps_total)
                    return total;
                else
                    return acc;
            }();
            if (done.last_partition < range.num_parts)
                wait_for_sums(range.block, range.block_of(done_part + range.num_parts - 1) - range.block);
#pragma unroll 1
            for (int part = done_part + done.last_partition; part < done_part + range.num_parts; part++) {
                const int block = range.block_of(part);
                SumsInMemory<TOKENS>(s, block, part - range.first_of(block)).add_to(sums);
            }
            store_outputs(p, done, unaligned + (x_stages - shared_address(unaligned)), sums);
        }
        if (!has_more) return;
        if (finishes()) prefetch_rows(p, work);
        if (leaves) continue;
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();  // the outputs are stored
        copy_first_x();
    }
}
