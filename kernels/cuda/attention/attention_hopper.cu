// attention_prefill of attention.cu with Hopper's instructions: the same results, bit for bit. A block has one
// warpgroup that brings keys and values into shared memory, and some that have 64 query rows each. Blocks are
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
#include "attention_hopper.cuh"

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

// Brings the keys and values of a tile, panels of 64 columns: each lane 16 of them, from `row` of the cache on.
DEVICE void bring_tile(const HopperAttentionParams& params, u32 stages, const Barriers& barriers, RingPlace& place,
                       i32 row) {
    const int lane = threadIdx.x % 32;
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

// One warp calls it. The number of the block's first work is the block's own; then all blocks count up together, until
// each has found that there is no more, which resets the counter.
DEVICE void bring_tiles(const HopperAttentionParams& params, u32 stages, const Barriers& barriers, i32 num_blocks) {
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
            bring_tile(params, stages, barriers, place, row);
        }
        number = num_blocks + __shfl_sync(ALL_LANES, more, 0);
    }
}

DEVICE void attend(const AttentionParams& p, u32 stages, const Barriers& barriers, u8* shared, int warpgroup) {
    const int thread = threadIdx.x % WARPGROUP, warp = thread / 32;
    const i32 amount = amount_of_work(p), own_row = warpgroup * 64;
    Whole whole;
    whole.o = (float4*)(shared + WHOLES_AT + warpgroup * WHOLE_BYTES) + thread;
    Tiles tiles(p, barriers, stages, shared, warpgroup);
    RingPlace queue;
    for (;;) {
        const i32 number = pop(barriers, queue);
        if (number >= amount) break;
        const Work work(p, number);
        if (!work.exists) continue;
        const Item& item = work.item;
        const i32 kv_head = work.kv_head;
        whole.m[0] = whole.m[1] = NEGATIVE_INFINITY, whole.l[0] = whole.l[1] = 0.0f;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) whole.at(n) = {0.0f, 0.0f, 0.0f, 0.0f};
        Rows<1> rows;
        load_rows(rows, p, item, kv_head, own_row + warp * 16);
        tiles.share(rows);
        // Tiles that some of the warpgroup's rows see.
        i32 tile = item.first_tile, first_seen = item.end_tile, end_seen = item.end_tile;
        if (own_row < item.num_rows) {
            const i32 last_row = min(own_row + 64, item.num_rows) - 1;
            first_seen = lowest_key(p, item.first_position + (item.first_row + own_row) / p.group) / TILE_KEYS;
            end_seen = (item.first_position + (item.first_row + last_row) / p.group) / TILE_KEYS + 1;
        }
        for (; tile < first_seen; tile++) tiles.pass();
        if (tile < end_seen) {
            Scores scores;
            Partial<1> split;
            tiles.begin_scores(scores.s, rows, tiles.place);
            wgmma_wait<0>();
            settle(scores.s[0]);
            scores.weigh(rows, tile, p);
            tiles.await_values(tiles.place);
            bool begins = true;
            if (!HAS_TWO_STEPS) clear(split);
            for (; tile + 1 < end_seen; tile++) {
                if (HAS_TWO_STEPS && begins)
                    add_tile<true>(split, scores, tiles, rows, tile + 1);
                else
                    add_tile<false>(split, scores, tiles, rows, tile + 1);
                begins = (tile + 1) % SPLIT_TILES == 0;
                if (!begins) continue;
                close_split(whole, split);
                if (!HAS_TWO_STEPS) clear(split);
            }
            if (HAS_TWO_STEPS && begins) clear(split);
            float o[HEAD_DIM / 8][4], sums[1][4];
            tiles.begin_values(sums, o, scores.weights, item.num_keys - tile * TILE_KEYS);
            TileMerge merge(split, scores.m[0]);
            wgmma_wait<0>();
            settle(o);
            settle(sums);
            tiles.leave();
            merge.end(split, sums, o);
            close_split(whole, split);
            tile++;
        }
        for (; tile < item.end_tile; tile++) tiles.pass();
        if (rows.any) write_rows(p, item, kv_head, own_row + warp * 16, whole);
    }
}

#ifdef HAS_SPLIT_GROUPS
#include "attention_hopper_split.cuh"
#else
// Grid: as many blocks as run at once, at most prefill items * KV heads * PREFILL_PARTS; those go at once whose SMs are
// for decode work; dynamic shared memory: 1024 + BARRIERS_AT + 24 * KV_STAGES + 20 * QUEUED.
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
    for (int i = threadIdx.x; i < ONES_BYTES / 4; i += THREADS) ((u32*)(shared + ONES_AT))[i] = HALF2_ONES;
    wait_for_previous();
    asm volatile("fence.proxy.async;" ::: "memory");
    __syncthreads();
    const i32 num_blocks = min((i32)gridDim.x, params.attention.work.counts->prefill_sms * BLOCKS_PER_SM);
    if ((i32)blockIdx.x >= num_blocks) return;
    const int warpgroup = threadIdx.x / WARPGROUP;
    if constexpr (IS_NARROW) {
        if (warpgroup == 0)
            attend(params.attention, stages, barriers, shared, 0);
        else
            bring_tiles(params, stages, barriers, num_blocks);
    } else if (warpgroup == 0) {
        leave_registers<24>();  // what is left by the others
        if (threadIdx.x < 32) bring_tiles(params, stages, barriers, num_blocks);
    } else {
        take_registers<240>();
        attend(params.attention, stages, barriers, shared, warpgroup - 1);
    }
    end_prefill(params.attention);
}
#endif
#endif
