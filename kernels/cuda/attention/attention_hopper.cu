// attention_prefill of attention.cu with Hopper's instructions: the same results, bit for bit. A block has one
// warpgroup that brings keys and values into shared memory, and some that have 64 query rows each and take turns to
// multiply their queries by a tile's keys, so that while one makes weights of scores others multiply. Blocks are
// persistent: each takes the next item when it is done with one, as items are of very different length. Where there are
// few rows, a block has one warpgroup of queries and one warp that brings tiles, so that all SMs have some.
#include "../common/wgmma.cuh"
#include "attention.cuh"

struct HopperAttentionParams {
    AttentionParams attention;
    alignas(64) u8 key_map[128];    // tensor map of the layer's keys, [all tokens of all heads, HEAD_DIM], boxes of
    alignas(64) u8 value_map[128];  // KEY_GROUP tokens x 64 columns; of its values
};

#if HAS_WGMMA
#include "../common/bulk.cuh"

constexpr int WARPGROUP = 128;
constexpr int PANELS = (HEAD_DIM + 63) / 64, PANEL_BYTES = TILE_KEYS * 128;
constexpr int KEY_BYTES = PANELS * PANEL_BYTES, STAGE_BYTES = 2 * KEY_BYTES;  // keys, then values
constexpr int WHOLE_BYTES = 64 * HEAD_DIM * 4;                                // of a warpgroup
constexpr int WHOLES_AT = KV_STAGES * STAGE_BYTES, BARRIERS_AT = WHOLES_AT + PREFILL_GROUPS * WHOLE_BYTES;
constexpr bool IS_NARROW = PREFILL_GROUPS == 1;
constexpr int THREADS = PREFILL_GROUPS * WARPGROUP + (IS_NARROW ? 32 : WARPGROUP);

constexpr int QUEUED = 2;  // numbers of work that wait for the warpgroups
constexpr int OWN_BARRIERS = 1, TURN_BARRIERS = OWN_BARRIERS + PREFILL_GROUPS;  // named barriers of each warpgroup

struct Barriers {
    u32 keys, values, empty;     // KV_STAGES of each
    u32 queued, taken, numbers;  // QUEUED of each; numbers of `Work`
    DEVICE explicit Barriers(u32 at) : keys(at), values(at + 8 * KV_STAGES), empty(at + 16 * KV_STAGES) {
        queued = at + 24 * KV_STAGES, taken = queued + 8 * QUEUED, numbers = taken + 8 * QUEUED;
    }
};

DEVICE void synchronise(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
DEVICE void arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

DEVICE i32 amount_of_work(const AttentionParams& p) {
    return p.work.counts->prefill_items * p.num_kv_heads * PREFILL_PARTS;
}

// What a block does at once: an item's rows for a KV head, or as many of them as it has warpgroups for.
struct Work {
    Item item;
    i32 kv_head;
    bool exists = true;

    DEVICE Work(const AttentionParams& p, i32 number) {
        const i32 of_head = number / PREFILL_PARTS, index = of_head / p.num_kv_heads;
        kv_head = of_head - index * p.num_kv_heads;
        item = p.work.items[index];
        if (PREFILL_PARTS > 1) exists = take_part(p, item, number % PREFILL_PARTS, 64 * PREFILL_GROUPS);
    }
};

// One thread calls it.
DEVICE void push(const Barriers& barriers, const RingPlace& place, i32 number) {
    barrier_wait(barriers.taken + 8 * place.stage, place.phase ^ 1);
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(barriers.numbers + 4 * place.stage), "r"(number) : "memory");
    barrier_arrive(barriers.queued + 8 * place.stage);
}

DEVICE i32 pop(const Barriers& barriers, RingPlace& place) {
    i32 number;
    barrier_wait(barriers.queued + 8 * place.stage, place.phase);
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(number) : "r"(barriers.numbers + 4 * place.stage) : "memory");
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(barriers.taken + 8 * place.stage);
    place.advance(QUEUED);
    return number;
}

// One warp calls it: a lane brings 16 keys and values of each tile, panels of 64 columns. The number of the block's
// first work is the block's own; then all blocks count up together, until each has found that there is no more, which
// resets the counter.
DEVICE void bring_tiles(const HopperAttentionParams& params, u32 stages, const Barriers& barriers) {
    const AttentionParams& p = params.attention;
    const int lane = threadIdx.x % 32;
    const i32 amount = amount_of_work(p), step_blocks = TILE_KEYS / p.block_tokens;
    RingPlace place, queue;
    for (i32 number = blockIdx.x;;) {
        if (lane == 0) push(barriers, queue, number);
        queue.advance(QUEUED);
        if (number >= amount) return;
        u32 more = 0;  // looked at when the tiles are on their way
        if (lane == 0) more = atomicInc((u32*)&p.work.counts->prefill_counter, amount - 1);
        const Work work(p, number);
        const Item& item = work.item;
        GroupWalk walk(p, item, item.first_tile, lane % TILE_GROUPS);
        for (i32 tile = item.first_tile; work.exists && tile < item.end_tile; tile++) {
            const i32 row = (i32)walk.offset(p, work.kv_head);
            walk.advance(p, item.num_keys, step_blocks);
            const u32 to = stages + place.stage * STAGE_BYTES + lane * (KEY_GROUP * 128);
            const u32 keys = barriers.keys + 8 * place.stage, values = barriers.values + 8 * place.stage;
            barrier_wait(barriers.empty + 8 * place.stage, place.phase ^ 1);
            if (lane == 0) {
                barrier_arrive_expecting(keys, KEY_BYTES);
                barrier_arrive_expecting(values, KEY_BYTES);
            }
            __syncwarp();
            if (lane < TILE_GROUPS) {
#pragma unroll
                for (int panel = 0; panel < PANELS; panel++)
                    copy_box(to + panel * PANEL_BYTES, params.key_map, panel * 64, row, keys);
#pragma unroll
                for (int panel = 0; panel < PANELS; panel++)
                    copy_box(to + KEY_BYTES + panel * PANEL_BYTES, params.value_map, panel * 64, row, values);
            }
            place.advance(KV_STAGES);
        }
        number = gridDim.x + __shfl_sync(ALL_LANES, more, 0);
    }
}

// What lies behind a sequence's last key may be NaN, which no weight of 0 takes out of a sum. All threads of a
// warpgroup call it; the others may do the same meanwhile.
DEVICE void clear_rows(u8* values, int first, int barrier) {
    for (int i = threadIdx.x % WARPGROUP; i < PANELS * TILE_KEYS * 8; i += WARPGROUP)
        if (i / 8 % TILE_KEYS >= first) ((uint4*)values)[i] = {0, 0, 0, 0};
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    synchronise(barrier, WARPGROUP);
}

// A thread's merged splits, kept in shared memory while it works on the next split; nobody else looks at them.
struct Whole {
    float m[2], l[2];
    float4* o;  // element i of this thread at o[i * WARPGROUP]
};

// whole := whole + split, split := nothing.
DEVICE void close_split(Whole& whole, Partial<1>& split) {
    float keep[2], add[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        whole.m[half] = merge_weights(whole.m[half], split.m[0][half], keep[half], add[half]);
        whole.l[half] = merged(whole.l[half], keep[half], split.l[0][half], add[half]);
    }
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
        float4& o = whole.o[n * WARPGROUP];
        const float (&s)[4] = split.o[0][n];
        o = {merged(o.x, keep[0], s[0], add[0]), merged(o.y, keep[0], s[1], add[0]), merged(o.z, keep[1], s[2], add[1]),
             merged(o.w, keep[1], s[3], add[1])};
    }
    clear(split);
}

DEVICE void write_rows(const AttentionParams& p, const Item& item, i32 kv_head, i32 first, const Whole& whole) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const i32 row = first + 8 * half + g;
        if (row >= item.num_rows) continue;
        i32 token, head;
        locate(p, item, kv_head, row, token, head);
        const float factor = final_factor(p, whole.m[half], whole.l[half], load_sink(p, head));
        const i64 out_row = (i64)(item.first_token + token) * p.num_kv_heads * p.group + head;
        u32* out = (u32*)(p.out + out_row * HEAD_DIM) + t;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
            const float4 o = whole.o[n * WARPGROUP];
            out[4 * n] = half ? pack_half2(o.z * factor, o.w * factor) : pack_half2(o.x * factor, o.y * factor);
        }
    }
}

DEVICE void attend(const AttentionParams& p, u32 stages, const Barriers& barriers, u8* shared, int warpgroup) {
    const int thread = threadIdx.x % WARPGROUP, warp = thread / 32, lane = thread % 32;
    const i32 amount = amount_of_work(p), own_row = warpgroup * 64;
    Whole whole;
    whole.o = (float4*)(shared + WHOLES_AT + warpgroup * WHOLE_BYTES) + thread;
    const int turn = TURN_BARRIERS + warpgroup, next_turn = TURN_BARRIERS + (warpgroup + 1) % PREFILL_GROUPS;
    if (warpgroup == PREFILL_GROUPS - 1) arrive(next_turn, 2 * WARPGROUP);
    RingPlace place, queue;
    for (;;) {
        const i32 number = pop(barriers, queue);
        if (number >= amount) break;
        const Work work(p, number);
        if (!work.exists) continue;
        const Item& item = work.item;
        const i32 kv_head = work.kv_head;
        whole.m[0] = whole.m[1] = NEGATIVE_INFINITY, whole.l[0] = whole.l[1] = 0.0f;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) whole.o[n * WARPGROUP] = {0.0f, 0.0f, 0.0f, 0.0f};
        Rows<1> rows;
        load_rows(rows, p, item, kv_head, own_row + warp * 16);
        // Tiles that some of the warpgroup's rows see.
        const i32 last_row = min(own_row + 64, item.num_rows) - 1;
        const i32 first_key = lowest_key(p, item.first_position + (item.first_row + own_row) / p.group);
        const i32 last_key = own_row < item.num_rows ? item.first_position + (item.first_row + last_row) / p.group : -1;
        Partial<1> split;
        clear(split);
        for (i32 tile = item.first_tile; tile < item.end_tile; tile++) {
            const bool seen = tile * TILE_KEYS <= last_key && (tile + 1) * TILE_KEYS > first_key;
            const u32 keys = stages + place.stage * STAGE_BYTES, values = keys + KEY_BYTES;
            barrier_wait(barriers.keys + 8 * place.stage, place.phase);
            synchronise(turn, 2 * WARPGROUP);
            if (!seen) {
                arrive(next_turn, 2 * WARPGROUP);
                if (lane == 0) barrier_arrive(barriers.empty + 8 * place.stage);
            } else {
                float s[1][TILE_KEYS / 8][4];
                const u64 b = wgmma_descriptor(keys);
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < CHUNKS; k++)
                    wgmma_rows<false>(s[0], rows.queries[0][k], b + k / 4 * (PANEL_BYTES / 16) + k % 4 * 2, k > 0);
                wgmma_commit();
                arrive(next_turn, 2 * WARPGROUP);
                wgmma_wait<0>();
                Weights<1> weights;
                weigh_scores(weights, s, rows, tile * TILE_KEYS, p, 2);
                barrier_wait(barriers.values + 8 * place.stage, place.phase);
                const i32 num_keys = item.num_keys - tile * TILE_KEYS;
                if (num_keys < TILE_KEYS)
                    clear_rows(shared + place.stage * STAGE_BYTES + KEY_BYTES, num_keys, OWN_BARRIERS + warpgroup);
                float o[HEAD_DIM / 8][4];
                const u64 v = wgmma_columns_descriptor(values, TILE_KEYS);
                wgmma_fence();
#pragma unroll
                for (int j = 0; j < TILE_GROUPS; j++)
                    wgmma_rows<true>(o, weights.p[0][j], v + j * (KEY_GROUP * 128 / 16), j > 0);
                wgmma_commit();
                float sums[4] = {}, keep[2], add[2];
                sum_weights(sums, weights, 0);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    split.m[0][half] = merge_weights(split.m[0][half], weights.m[0][half], keep[half], add[half]);
                    split.l[0][half] = merged(split.l[0][half], keep[half], sums[2 * half], add[half]);
                }
                wgmma_wait<0>();
                if (lane == 0) barrier_arrive(barriers.empty + 8 * place.stage);
#pragma unroll
                for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        split.o[0][n][c] = merged(split.o[0][n][c], keep[c >> 1], o[n][c], add[c >> 1]);
            }
            place.advance(KV_STAGES);
            if ((tile + 1) % SPLIT_TILES == 0 || tile + 1 == item.end_tile) close_split(whole, split);
        }
        if (rows.any) write_rows(p, item, kv_head, own_row + warp * 16, whole);
    }
    if (warpgroup == 0) synchronise(turn, 2 * WARPGROUP);  // what the last one said
}

// Grid: as many blocks as run at once, at most prefill items * KV heads * PREFILL_PARTS; dynamic shared memory: 1024 +
// BARRIERS_AT + 24 * KV_STAGES + 20 * QUEUED.
KERNEL __launch_bounds__(THREADS, BLOCKS_PER_SM)
    attention_prefill_hopper(const __grid_constant__ HopperAttentionParams params) {
    extern __shared__ u8 unaligned[];
    const u32 stages = (shared_address(unaligned) + 1023) & ~1023u;
    u8* const shared = unaligned + (stages - shared_address(unaligned));
    const Barriers barriers(stages + BARRIERS_AT);
    if (threadIdx.x == 0) {
        for (int i = 0; i < KV_STAGES; i++) {
            barrier_init(barriers.keys + 8 * i, 1);
            barrier_init(barriers.values + 8 * i, 1);
            barrier_init(barriers.empty + 8 * i, 4 * PREFILL_GROUPS);
        }
        for (int i = 0; i < QUEUED; i++) {
            barrier_init(barriers.queued + 8 * i, 1);
            barrier_init(barriers.taken + 8 * i, 4 * PREFILL_GROUPS);
        }
        publish_barriers();
    }
    __syncthreads();
    wait_for_previous();
    const int warpgroup = threadIdx.x / WARPGROUP;
    if constexpr (IS_NARROW) {
        if (warpgroup == 0)
            attend(params.attention, stages, barriers, shared, 0);
        else
            bring_tiles(params, stages, barriers);
    } else if (warpgroup == 0) {
        leave_registers<PREFILL_GROUPS == 3 ? 32 : 24>();  // what is left by the others
        if (threadIdx.x < 32) bring_tiles(params, stages, barriers);
    } else {
        take_registers<PREFILL_GROUPS == 3 ? 160 : 240>();
        attend(params.attention, stages, barriers, shared, warpgroup - 1);
    }
}
#endif
