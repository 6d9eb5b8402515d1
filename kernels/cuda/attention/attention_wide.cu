// Attention over the paged KV cache for heads of 256 and 512, whose rows no warp can hold. The warps of a block share
// query rows and tiles of keys and values in shared memory: each scores some keys of a tile, and has WARP_COLUMNS
// columns of the output. In prefill several such groups of warps, each with rows of its own, may share the tiles.
// Softmax is that of attention.cuh; decode and prefill differ in the number of rows only, so that a row's bits are the
// same in both.
#include "attention_wide.cuh"

// ---- an item

// Calls use(row tile, half, row) for the rows that this lane has of the item.
template <int ROW_TILES, typename Use>
DEVICE void for_rows(const Item& item, Use use) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (lane_row(r, half) < item.num_rows) use(r, half, lane_row(r, half));
}

DEVICE i64 partial_row(const AttentionParams& p, const Item& item, i32 kv_head, i32 split, int row) {
    return (i64)(item.partial_row + split * item.num_rows + row) * p.num_kv_heads + kv_head;
}

template <int ROW_TILES>
DEVICE void store_split(const AttentionParams& p, const Item& item, i32 kv_head, i32 split,
                        const Partial<ROW_TILES>& partial) {
    for_rows<ROW_TILES>(item, [&](int r, int half, int row) {
        const i64 at = partial_row(p, item, kv_head, split, row);
        if (warp_of_group() == 0 && threadIdx.x % 4 == 0)
            p.work.partial_sums[at] = {partial.m[r][half], partial.l[r][half]};
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
            *(float2*)(p.work.partial_outputs + at * HEAD_DIM + lane_column(n)) = {partial.o[r][n][2 * half],
                                                                                   partial.o[r][n][2 * half + 1]};
    });
}

template <int ROW_TILES>
DEVICE void merge_stored(const AttentionParams& p, const Item& item, i32 kv_head, Partial<ROW_TILES>& whole) {
    for (i32 split = item.first_split; split < item.end_split; split++)
        for_rows<ROW_TILES>(item, [&](int r, int half, int row) {
            const i64 at = partial_row(p, item, kv_head, split, row);
            const float2 sums = load_shared_result(p.work.partial_sums + at);
            whole.merge_row(r, half, sums.x, sums.y, [&](int n) {
                return load_shared_result((const float2*)(p.work.partial_outputs + at * HEAD_DIM + lane_column(n)));
            });
        });
}

template <int ROW_TILES>
DEVICE void write_rows(const AttentionParams& p, const Item& item, i32 kv_head, const Partial<ROW_TILES>& whole) {
    for_rows<ROW_TILES>(item, [&](int r, int half, int row) {
        i32 token, head;
        locate(p, item, kv_head, row, token, head);
        const float factor = final_factor(p, whole.m[r][half], whole.l[r][half], load_sink(p, head));
        u16* out = p.out + ((i64)(item.first_token + token) * p.num_kv_heads * p.group + head) * HEAD_DIM;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
            *(u32*)(out + lane_column(n)) =
                pack_half2(whole.o[r][n][2 * half] * factor, whole.o[r][n][2 * half + 1] * factor);
    });
}

template <int ROW_TILES, int GROUPS>
DEVICE void compute_item(const AttentionParams& p, const Item& whole_item, i32 kv_head, u8* shared) {
    constexpr int ROWS = Place<ROW_TILES>::ROWS;
    const Place<ROW_TILES> place{shared, GROUPS};
    Item item = whole_item;  // this group's rows of it
    item.first_row += place.group() * ROWS;
    item.num_rows = min(max(item.num_rows - place.group() * ROWS, 0), ROWS);
    copy_queries<ROWS, GROUPS>(place.all_queries(), p, whole_item, kv_head);
    auto offsets_of = [&](i32 tile) { return group_offset(p, item, kv_head, tile, threadIdx.x % TILE_GROUPS); };
    i64 offsets = offsets_of(item.first_tile);
    copy_tile<GROUPS>(place.keys(), p.cache.keys, offsets, item, item.first_tile);
    const Seen<ROW_TILES> seen(p, item, kv_head);
    Partial<ROW_TILES> split, whole;
    split.clear();
    whole.clear();
    float code_bias[ROW_TILES][2];
    for (i32 tile = item.first_tile; tile < item.end_tile; tile++) {
        Scores<ROW_TILES> s;
        float m[ROW_TILES][2];
        const i64 next_offsets = offsets_of(tile + 1);
        copy_wait<0>();
        __syncthreads();  // the keys are there, and nobody reads values or weights any more
        if (KV_BUFFERS == 2) copy_tile<GROUPS>(place.values(), p.cache.values, offsets, item, tile);
        if (IS_Q8 && tile == item.first_tile) find_code_bias(code_bias, place);
        score_keys<ROW_TILES>(s, place, p, seen, code_bias, tile * TILE_KEYS);
        put_maxima<ROW_TILES>(s, place);
        __syncthreads();  // nobody reads keys any more
        if (KV_BUFFERS == 2)
            copy_tile<GROUPS>(place.keys(), p.cache.keys, next_offsets, item, tile + 1);
        else
            copy_tile<GROUPS>(place.values(), p.cache.values, offsets, item, tile);
        put_weights<ROW_TILES>(m, s, place, p.scores.scale_log2);
        copy_wait<KV_BUFFERS - 1>();
        __syncthreads();  // values and weights are there
        merge_tile<ROW_TILES>(split, m, place);
        if (KV_BUFFERS == 1) {
            __syncthreads();
            copy_tile<GROUPS>(place.keys(), p.cache.keys, next_offsets, item, tile + 1);
        }
        offsets = next_offsets;
        if ((tile + 1) % SPLIT_TILES == 0 || tile + 1 == item.end_tile) {
            if (item.num_items == 1)
                whole.merge(split);
            else
                store_split<ROW_TILES>(p, item, kv_head, tile / SPLIT_TILES, split);
            split.clear();
        }
    }
    if (item.num_items > 1) {
        __syncthreads();
        if (!arrives_last(p, item, kv_head)) return;
        merge_stored<ROW_TILES>(p, item, kv_head, whole);
    }
    write_rows<ROW_TILES>(p, item, kv_head, whole);
}

// Grid: at least decode items * KV heads. Dynamic shared memory of both: `WideShape.shared_bytes`.
KERNEL __launch_bounds__(THREADS) attention_wide_decode(const __grid_constant__ AttentionParams p) {
    extern __shared__ __align__(16) u8 shared[];
    wait_for_previous();
    const i32 index = blockIdx.x / p.num_kv_heads, kv_head = blockIdx.x - index * p.num_kv_heads;
    const i32 token = blockIdx.x, position = token < p.num_tokens ? p.positions[token] : 0;
    if (index < p.work.counts->decode_items) compute_item<1, 1>(p, p.work.items[index], kv_head, shared);
    clear_padding(p, token, position);
}

// Grid: at least prefill items * KV heads.
KERNEL __launch_bounds__(PREFILL_GROUPS* THREADS) attention_wide_prefill(const __grid_constant__ AttentionParams p) {
    extern __shared__ __align__(16) u8 shared[];
    wait_for_previous();
    const i32 index = blockIdx.x / p.num_kv_heads;
    if (index >= p.work.counts->prefill_items) return;
    compute_item<PREFILL_ROW_TILES, PREFILL_GROUPS>(p, p.work.items[index], blockIdx.x - index * p.num_kv_heads,
                                                    shared);
}
