// attention_prefill_hopper where there are fewer rows than SMs have room for: two warpgroups have the same 64 rows and
// every second KV split each, with a ring of tiles and a warp that fills it for each, of the third warpgroup. They
// merge their splits in turn.
#pragma once

constexpr int SPLIT_GROUPS = 2, SPLIT_THREADS = (SPLIT_GROUPS + 1) * WARPGROUP;
constexpr int TURN_BARRIERS = OWN_BARRIERS + SPLIT_GROUPS;  // named ones: it is this warpgroup's turn to merge
// Shared memory of each, as of a block of attention_prefill_hopper. Merged splits are in the first one's.
constexpr int REGION_BYTES = BARRIERS_AT + 1024;
static_assert(!SHARES_QUERIES, "each has its own in registers");
static_assert(24 * KV_STAGES <= 1024 && WHOLE_BYTES >= 2048, "see REGION_BYTES; m and l of merged splits");

// The KV splits of a warpgroup: calls use(first tile, end tile).
template <class Use>
DEVICE void for_splits(const Item& item, int group, Use use) {
    const i32 first_split = item.first_tile / SPLIT_TILES;
#pragma unroll 1
    for (i32 split = first_split + group; split * SPLIT_TILES < item.end_tile; split += SPLIT_GROUPS)
        use(max(split * SPLIT_TILES, item.first_tile), min((split + 1) * SPLIT_TILES, item.end_tile));
}

DEVICE void bring_splits(const HopperAttentionParams& params, u32 region, const Barriers& barriers, int group) {
    const AttentionParams& p = params.attention;
    const Work work(p, blockIdx.x);
    if (!work.exists) return;
    const i32 step_blocks = TILE_KEYS / p.block_tokens;
    RingPlace place;
    for_splits(work.item, group, [&](i32 tile, i32 end) {
        GroupWalk walk(p, work.item, tile, threadIdx.x % 32 % TILE_GROUPS);
        for (; tile < end; tile++) {
            const i32 row = (i32)walk.offset(p, work.kv_head);
            walk.advance(p, work.item.num_keys, step_blocks);
            bring_tile(params, region, barriers, place, row);
        }
    });
}

// Makes what a KV split's tiles give, of which there is at least one: as `attend`.
DEVICE void make_split(Partial<1>& split, const AttentionParams& p, Tiles& tiles, const Rows<1>& rows, i32 tile,
                       i32 end, i32 num_keys) {
    Scores scores;
    clear(split);
    tiles.begin_scores(scores.s, rows, tiles.place);
    wgmma_wait<0>();
    settle(scores.s[0]);
    scores.weigh(rows, tile, p);
    tiles.await_values(tiles.place);
    for (; tile + 1 < end; tile++) add_tile<false>(split, scores, tiles, rows, tile + 1);
    float o[HEAD_DIM / 8][4], sums[1][4];
    tiles.begin_values(sums, o, scores.weights, num_keys - tile * TILE_KEYS);
    TileMerge merge(split, scores.m[0]);
    wgmma_wait<0>();
    settle(o);
    settle(sums);
    tiles.leave();
    merge.end(split, sums, o);
}

DEVICE void attend_to_splits(const AttentionParams& p, u32 region, const Barriers& barriers, u8* shared, int group) {
    const Work work(p, blockIdx.x);
    if (!work.exists) return;
    const int thread = threadIdx.x % WARPGROUP, warp = thread / 32;
    const Item& item = work.item;
    Whole whole;  // of both warpgroups
    whole.o = (float4*)(shared + WHOLES_AT) + thread;
    whole.m[0] = whole.m[1] = NEGATIVE_INFINITY, whole.l[0] = whole.l[1] = 0.0f;
    if (group == 0)
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) whole.at(n) = {0.0f, 0.0f, 0.0f, 0.0f};
    Rows<1> rows;
    load_rows(rows, p, item, work.kv_head, warp * 16);
    Tiles tiles(p, barriers, region, shared + group * REGION_BYTES, group);
    float4* const merged_sums = (float4*)(shared + REGION_BYTES + WHOLES_AT) + thread;  // its m and l
    for_splits(item, group, [&](i32 tile, i32 end) {
        Partial<1> split;
        make_split(split, p, tiles, rows, tile, end, item.num_keys);
        if (tile > item.first_tile) {  // the other one has merged the split before
            synchronise(TURN_BARRIERS + group, SPLIT_GROUPS * WARPGROUP);
            const float4 sums = *merged_sums;
            whole.m[0] = sums.x, whole.m[1] = sums.y, whole.l[0] = sums.z, whole.l[1] = sums.w;
        }
        close_split(whole, split);
        if (end < item.end_tile) {
            *merged_sums = {whole.m[0], whole.m[1], whole.l[0], whole.l[1]};
            arrive(TURN_BARRIERS + 1 - group, SPLIT_GROUPS * WARPGROUP);
        } else if (rows.any)
            write_rows(p, item, work.kv_head, warp * 16, whole);
    });
}

// Grid: at least prefill items * KV heads * PREFILL_PARTS; dynamic shared memory: 1024 + SPLIT_GROUPS * REGION_BYTES.
KERNEL __launch_bounds__(SPLIT_THREADS, 1)
    attention_prefill_hopper_split(const __grid_constant__ HopperAttentionParams params) {
    extern __shared__ u8 unaligned[];
    const u32 base = (shared_address(unaligned) + 1023) & ~1023u;
    u8* const shared = unaligned + (base - shared_address(unaligned));
    const bool brings = threadIdx.x >= SPLIT_GROUPS * WARPGROUP;
    const int group = brings ? threadIdx.x / 32 - SPLIT_GROUPS * WARPGROUP / 32 : threadIdx.x / WARPGROUP;
    const u32 region = base + group * REGION_BYTES;
    const Barriers barriers(region + BARRIERS_AT);
    if (brings && group < SPLIT_GROUPS && threadIdx.x % 32 == 0) {
        for (int i = 0; i < KV_STAGES; i++) {
            barrier_init(barriers.keys + 8 * i, 1);
            barrier_init(barriers.values + 8 * i, 1);
            barrier_init(barriers.empty + 8 * i, 4);
        }
        publish_barriers();
    }
    for (int i = threadIdx.x; i < SPLIT_GROUPS * ONES_BYTES / 4; i += SPLIT_THREADS)
        ((u32*)(shared + i / (ONES_BYTES / 4) * REGION_BYTES + ONES_AT))[i % (ONES_BYTES / 4)] = HALF2_ONES;
    wait_for_previous();
    asm volatile("fence.proxy.async;" ::: "memory");
    __syncthreads();
    const AttentionParams& p = params.attention;
    const bool exists = (i32)blockIdx.x < amount_of_work(p);
    if (brings) {
        leave_registers<24>();
        if (exists && group < SPLIT_GROUPS) bring_splits(params, region, barriers, group);
    } else {
        take_registers<240>();
        if (exists) attend_to_splits(p, region, barriers, shared, group);
    }
    end_prefill(params.attention);
}
