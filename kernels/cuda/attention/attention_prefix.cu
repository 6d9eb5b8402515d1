// Attention of prefix groups to the tiles that their members share: the query rows of many sequences against the same
// tiles of keys and values, which are read once for all of them. What is merged of a row goes to the workspace, and the
// member's items of attention.cu go on from there: with the same operations in the same order as without groups.
#include "attention.cuh"

constexpr int ROW_TILES = PREFIX_ROW_TILES;
constexpr int WARP_ROWS = 16 * ROW_TILES;
constexpr int THREADS = PREFIX_WARPS * 32;
static_assert(PREFIX_WARPS == TILE_GROUPS, "each warp copies one group of keys and of values");

// A warp's rows. `lowest` gets the first key that some row sees.
DEVICE void load_rows(Rows<ROW_TILES>& rows, const AttentionParams& p, const PrefixItem& item, i32 kv_head,
                      i32& lowest) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * WARP_ROWS;
    i32 all_lowest = 0;
    lowest = 0x7FFFFFFF;
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const i32 row = first + 16 * r + 8 * half + lane / 4;
            const bool valid = row < item.num_rows;
            const i32 pair = item.first_row + (valid ? row : 0), member = pair / p.group;
            const i32 head = kv_head * p.group + pair - member * p.group;
            const i32 token = p.work.prefix.query_starts[p.work.prefix.members[item.first_member + member]];
            const i32 position = p.positions[token];
            rows.lowest[r][half] = valid ? lowest_key(p, position) : 0;
            rows.highest[r][half] = valid ? position : -1;
            if (valid) all_lowest = max(all_lowest, rows.lowest[r][half]), lowest = min(lowest, rows.lowest[r][half]);
            const u32* query = (const u32*)(p.qkv + (i64)token * p.qkv_width + head * HEAD_DIM) + lane % 4;
#pragma unroll
            for (int k = 0; k < CHUNKS; k++) {
                rows.queries[r][k][half] = valid ? query[8 * k] : 0;
                rows.queries[r][k][2 + half] = valid ? query[8 * k + 4] : 0;
            }
        }
    find_code_bias(rows);
    rows.any = first < item.num_rows;
    rows.all_lowest = __reduce_max_sync(ALL_LANES, all_lowest);
    rows.all_highest = 0x7FFFFFFF;  // shared keys are before every row's own position
    lowest = __reduce_min_sync(ALL_LANES, lowest);
}

// What a thread has merged, kept in shared memory while it works on the next KV split; nobody else looks at it.
struct Whole {
    float m[ROW_TILES][2], l[ROW_TILES][2];
    float4* o;  // element i of this thread at o[i * THREADS]
};

DEVICE float4& output(const Whole& whole, int row_tile, int n) {
    return whole.o[(row_tile * (HEAD_DIM / 8) + n) * THREADS];
}

DEVICE void clear(Whole& whole) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
#pragma unroll
        for (int half = 0; half < 2; half++) whole.m[r][half] = NEGATIVE_INFINITY, whole.l[r][half] = 0.0f;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) output(whole, r, n) = {0.0f, 0.0f, 0.0f, 0.0f};
    }
}

DEVICE void merge(Whole& whole, const Partial<ROW_TILES>& split) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        float keep[2], add[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            whole.m[r][half] = merge_weights(whole.m[r][half], split.m[r][half], keep[half], add[half]);
            whole.l[r][half] = merged(whole.l[r][half], keep[half], split.l[r][half], add[half]);
        }
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
            float4& o = output(whole, r, n);
            const float (&s)[4] = split.o[r][n];
            o = {merged(o.x, keep[0], s[0], add[0]), merged(o.y, keep[0], s[1], add[0]),
                 merged(o.z, keep[1], s[2], add[1]), merged(o.w, keep[1], s[3], add[1])};
        }
    }
}

DEVICE void load(Partial<ROW_TILES>& partial, const Whole& whole) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
#pragma unroll
        for (int half = 0; half < 2; half++)
            partial.m[r][half] = whole.m[r][half], partial.l[r][half] = whole.l[r][half];
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
            const float4 o = output(whole, r, n);
            partial.o[r][n][0] = o.x, partial.o[r][n][1] = o.y, partial.o[r][n][2] = o.z, partial.o[r][n][3] = o.w;
        }
    }
}

DEVICE void store(const AttentionParams& p, const PrefixItem& item, i32 kv_head, i32 state,
                  const Partial<ROW_TILES>& partial) {
    const int lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const i32 row = threadIdx.x / 32 * WARP_ROWS + 16 * r + 8 * half + lane / 4;
            if (row >= item.num_rows) continue;
            const i64 at = (i64)(item.states.row + state * item.states.stride + row) * p.num_kv_heads + kv_head;
            if (t == 0) p.work.partial_sums[at] = {partial.m[r][half], partial.l[r][half]};
            float2* outputs = (float2*)(p.work.partial_outputs + at * HEAD_DIM) + t;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++)
                outputs[4 * n] = {partial.o[r][n][2 * half], partial.o[r][n][2 * half + 1]};
        }
}

DEVICE void prefix_item(const AttentionParams& p, const PrefixItem& item, i32 kv_head, u8* shared) {
    const int group = threadIdx.x / 32;
    const i32 num_keys = item.end_tile * TILE_KEYS;
    Item keys_of = {};  // whose keys are read
    keys_of.sequence = item.sequence, keys_of.num_keys = num_keys;
    auto place_of = [&](i32 tile) { return shared_address(shared) + tile % PREFIX_STAGES * 2 * TILE_BYTES; };
    i64 offset = group_offset(p, keys_of, kv_head, item.first_tile, group);
    auto copy = [&](i32 tile) {
        if (tile < item.end_tile) {
            copy_group(place_of(tile), p.cache.keys, offset, tile, group, num_keys);
            copy_group(place_of(tile) + TILE_BYTES, p.cache.values, offset, tile, group, num_keys);
            offset = group_offset(p, keys_of, kv_head, tile + 1, group);  // a tile before its use
        }
        copy_commit();
    };
    copy(item.first_tile);

    i32 lowest;
    Rows<ROW_TILES> rows;
    load_rows(rows, p, item, kv_head, lowest);
    Whole whole;
    whole.o = (float4*)(shared + PREFIX_STAGES * 2 * TILE_BYTES) + threadIdx.x;
    clear(whole);
    Partial<ROW_TILES> split;
    clear(split);
    i32 state = item.first_state;
    for (i32 tile = item.first_tile; tile < item.end_tile; tile++) {
        copy_wait<0>();
        __syncthreads();  // the tile is there, and nobody reads the one before it any more
        if (PREFIX_STAGES > 1) copy(tile + 1);
        if (rows.any && (tile + 1) * TILE_KEYS > lowest) {
            Weights<ROW_TILES> weights;
            score_tile(weights, rows, place_of(tile), tile * TILE_KEYS, p, 2);
            merge_tile(split, weights, place_of(tile) + TILE_BYTES);
        }
        if (PREFIX_STAGES == 1) {
            __syncthreads();
            copy(tile + 1);
        }
        if ((tile + 1) % SPLIT_TILES == 0) {
            if (item.first_tile == 0)
                merge(whole, split);
            else
                store(p, item, kv_head, state++, split);
            clear(split);
        }
    }
    if (item.open_state >= 0) store(p, item, kv_head, item.open_state, split);
    if (item.first_tile == 0) {
        load(split, whole);
        store(p, item, kv_head, 0, split);
    }
}

// Grid: at least prefix items * KV heads; dynamic shared memory: `PrefixShape.shared_bytes`.
KERNEL __launch_bounds__(THREADS, 2) attention_prefix(const __grid_constant__ AttentionParams p) {
    extern __shared__ __align__(16) u8 shared[];
    wait_for_previous();
    const i32 index = blockIdx.x / p.num_kv_heads;
    if (index >= p.work.counts->prefix_items) return;
    prefix_item(p, p.work.prefix.items[index], blockIdx.x - index * p.num_kv_heads, shared);
}
