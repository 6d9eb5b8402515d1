// Lists the work of a step's attention on the device, once a step: lengths never travel to the host, and the grids of
// the attention kernels depend on array shapes only.
#include "attention_plan_prefix.cuh"

struct DecodePlanParams {
    i32 short_rows;    // sequences of so many query rows are decode work too: there is more to divide of it
    i32 wanted_items;  // into about so many items it is divided when there are few sequences
    i32 partial_rows;  // rows of the workspace for divided items
    i32 columns;       // sequences whose blocks make about one for each SM
};

struct PrefillPlanParams {
    i32 rows;     // query rows of an item, 0: everything is a decode item
    i32 classes;  // of items by their number of tiles: those of a class come one after the other
    i32 num_sms;
};

struct AttentionPlanParams {
    const i32* query_starts;     // [num_sequences + 1]
    const i32* context_lengths;  // [num_sequences]
    PlanCounts* counts;          // [1]
    Item* decode_items;          // [as many as the shapes allow]
    Item* prefill_items;         // [as many as the shapes allow]
    i32* arrivals;               // [num_arrivals], zeroed here
    i32 num_sequences;
    i32 group;   // query heads per KV head
    i32 window;  // keys that a token sees, 0: all
    i32 num_arrivals;
    DecodePlanParams decode_plan;
    PrefillPlanParams prefill;
    PrefixPlanParams prefix;
};

// The work of a sequence.
struct Demand {
    i32 num_tokens, num_keys, num_rows;
    bool decode;
    i32 row_tiles;  // items before they are divided
    i32 first_split, end_split;
    bool is_short;  // has no more tiles than a KV split, maybe of two
};

DEVICE i32 lowest_key(const AttentionPlanParams& p, i32 position) {
    return p.window && position >= p.window ? position - p.window + 1 : 0;
}

DEVICE Demand demand_of(const AttentionPlanParams& p, i32 sequence, const Group* group) {
    Demand d = {};
    d.num_tokens = p.query_starts[sequence + 1] - p.query_starts[sequence];
    d.num_keys = p.context_lengths[sequence];
    if (d.num_tokens <= 0 || d.num_keys <= 0) return Demand{};
    d.num_rows = d.num_tokens * p.group;
    d.decode = d.num_tokens == 1 || d.num_rows <= p.decode_plan.short_rows || !p.prefill.rows;
    d.row_tiles = divide_up(d.num_rows, d.decode ? DECODE_ROWS : p.prefill.rows);
    const i32 first_key = lowest_key(p, d.num_keys - d.num_tokens);
    d.first_split = first_key / (TILE_KEYS * SPLIT_TILES);
    d.end_split = divide_up(d.num_keys, TILE_KEYS * SPLIT_TILES);
    d.is_short = divide_up(d.num_keys, TILE_KEYS) - first_key / TILE_KEYS <= SPLIT_TILES;
    if (group) d.first_split = max(d.first_split, group->num_tiles / SPLIT_TILES);
    return d;
}

// Exclusive sum of the block's values; `total` gets the sum of all. All threads call it.
DEVICE i32 block_scan(i32 value, i32* sums, i32& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    i32 inclusive = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        i32 before = __shfl_up_sync(ALL_LANES, inclusive, distance);
        if (lane >= distance) inclusive += before;
    }
    if (lane == 31) sums[warp] = inclusive;
    __syncthreads();
    i32 of_warps = lane < (int)blockDim.x / 32 ? sums[lane] : 0;  // all warps add these up
    const i32 of_warp = __shfl_sync(ALL_LANES, of_warps, warp);
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        i32 before = __shfl_up_sync(ALL_LANES, of_warps, distance);
        if (lane >= distance) of_warps += before;
    }
    total = __shfl_sync(ALL_LANES, of_warps, 31);
    const i32 offset = __shfl_sync(ALL_LANES, of_warps, warp) - of_warp;
    __syncthreads();
    return offset + inclusive - value;
}

// The sequence whose items include number `item`: starts[s] <= item < starts[s + 1].
DEVICE i32 sequence_of(const i32* starts, i32 num_sequences, i32 item) {
    i32 low = 0, high = num_sequences;
    while (high - low > 1) {
        i32 middle = (low + high) / 2;
        if (starts[middle] <= item)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// The item of `rows` rows number `row_tile` of a sequence, over all keys that they see.
DEVICE Item whole_item(const AttentionPlanParams& p, i32 sequence, const Demand& d, i32 row_tile, i32 rows) {
    Item item = {};
    item.sequence = sequence;
    item.first_token = p.query_starts[sequence];
    item.first_position = d.num_keys - d.num_tokens;
    item.first_row = row_tile * rows;
    item.num_rows = min(rows, d.num_rows - item.first_row);
    item.num_keys = d.num_keys;
    i32 last_position = item.first_position + (item.first_row + item.num_rows - 1) / p.group;
    item.first_tile = lowest_key(p, item.first_position + item.first_row / p.group) / TILE_KEYS;
    item.end_tile = last_position / TILE_KEYS + 1;
    item.first_split = item.first_tile / SPLIT_TILES;
    item.end_split = divide_up(item.end_tile, SPLIT_TILES);
    item.num_items = 1;
    return item;
}

// How a decode item is divided, and which of those that come of it is meant.
struct Division {
    i32 num_items, number;
    i32 item_splits;
    i32 partial_start;  // of its sequence's rows
    i32 first_item;
};

// Leaves that part of `item`. It may come out without tiles: items are cut for the sequence, not for the row tile.
DEVICE void cut(Item& item, const Demand& d, const Division& division) {
    if (division.num_items == 1) return;
    const i32 num_splits = d.end_split - d.first_split, item_tiles = division.item_splits * SPLIT_TILES;
    const i32 first = d.first_split * SPLIT_TILES + division.number * item_tiles;
    item.first_tile = max(item.first_tile, first);
    item.end_tile = min(item.end_tile, first + item_tiles);
    item.partial_row = division.partial_start + item.first_row * num_splits - d.first_split * item.num_rows;
    item.num_items = division.num_items;
    item.arrivals = division.first_item;
}

// Lists all sequences in `order`, those first whose decode items walk over most keys, so that blocks that begin last
// end soon. Where all begin at once SMs get them in turn: so every other row of `columns` is the other way round. All
// threads call it; `lengths` [num_sequences] is shared memory for it.
DEVICE void put_in_order(i32* order, i32* lengths, const AttentionPlanParams& p, const PrefixPlan& prefixes) {
    for (i32 s = threadIdx.x; s < p.num_sequences; s += blockDim.x) {
        const Demand d = demand_of(p, s, prefixes.group_of(s));
        lengths[s] = d.decode ? d.num_keys - d.first_split * (TILE_KEYS * SPLIT_TILES) : 0;
    }
    __syncthreads();
    for (i32 s = threadIdx.x; s < p.num_sequences; s += blockDim.x) {
        const i32 length = lengths[s];
        i32 rank = 0;
        for (i32 other = 0; other < p.num_sequences; other++)
            rank += lengths[other] > length || (lengths[other] == length && other < s);
        const i32 columns = p.decode_plan.columns, column = rank % columns, row_start = rank - column;
        const bool is_reversed = rank / columns % 2;
        order[is_reversed ? row_start + min(columns, p.num_sequences - row_start) - 1 - column : rank] = s;
    }
    __syncthreads();
}

// Of so many tiles of decode and of prefill items, of which those take bandwidth and these, twice as long, the tensor
// cores. Half of the SMs can do with nearly all of the bandwidth. What decode items are left then get all SMs.
DEVICE i32 sms_for_prefill(const AttentionPlanParams& p, i32 prefill_tiles, i32 decode_tiles) {
    const i32 num_sms = p.prefill.num_sms, all = decode_tiles + 2 * prefill_tiles;
    const i32 others = p.prefix.num_groups || !all ? 0 : (i32)((i64)num_sms * decode_tiles / all);
    return num_sms - min(others, num_sms / 2);
}

// The same as attention_plan of one token. The first layer waits for it, and for its code, which has to come from
// memory each time: so there is little of it. Runs as one warp, and overlaps the previous kernel.
KERNEL __launch_bounds__(32) attention_plan_one(const __grid_constant__ AttentionPlanParams p) {
    start_next();
    acquire();
    const Demand d = demand_of(p, 0, nullptr);
    const i32 num_splits = d.end_split - d.first_split, all_splits = d.row_tiles * num_splits;
    const i32 item_splits = max(1, divide_up(all_splits, p.decode_plan.wanted_items));
    const bool is_divided =
        num_splits > item_splits && !d.is_short && d.num_rows * num_splits <= p.decode_plan.partial_rows;
    const i32 num_items = is_divided ? divide_up(num_splits, item_splits) : 1, decodes = d.row_tiles * num_items;
    for (i32 i = threadIdx.x; i < p.num_arrivals; i += 32) p.arrivals[i] = 0;
    for (i32 i = threadIdx.x; i < decodes; i += 32) {
        const i32 row_tile = i / num_items, number = i - row_tile * num_items;
        Item item = whole_item(p, 0, d, row_tile, DECODE_ROWS);
        cut(item, d, {num_items, number, item_splits, 0, i - number});
        p.decode_items[i] = item;
    }
    if (threadIdx.x == 0)
        *p.counts = {decodes, 0, p.query_starts[1], 0, 0, sms_for_prefill(p, 0, all_splits * SPLIT_TILES)};
    wait_for_previous();
}

// Runs as one block, and overlaps the previous kernel.
KERNEL attention_plan(const __grid_constant__ AttentionPlanParams p) {
    extern __shared__ i32 shared[];
    i32* order = shared;                                         // [num_sequences]
    i32* decode_starts = order + p.num_sequences;                // [num_sequences + 1], in that order
    i32* prefill_starts = decode_starts + p.num_sequences + 1;   // [num_sequences + 1]
    i32* partial_starts = prefill_starts + p.num_sequences + 1;  // [num_sequences], in that order; -1: not divided
    const PrefixPlan prefixes{p.prefix, partial_starts + p.num_sequences, p.num_sequences, p.group};
    __shared__ i32 sums[32];
    start_next();
    acquire();

    const int thread = threadIdx.x, threads = blockDim.x;
    for (int i = thread; i < p.num_arrivals; i += threads) p.arrivals[i] = 0;

    prefixes.divide();
    put_in_order(order, partial_starts, p, prefixes);

    // Splits per item, so that the work is about evenly spread.
    i32 splits = 0;
    for (int s = thread; s < p.num_sequences; s += threads) {
        Demand d = demand_of(p, s, prefixes.group_of(s));
        if (d.decode) splits += d.row_tiles * (d.end_split - d.first_split);
    }
    i32 all_splits, total;
    block_scan(splits, sums, all_splits);
    const i32 item_splits = max(1, divide_up(all_splits, p.decode_plan.wanted_items));

    // Where each sequence's items and workspace rows begin. Sequences for which no workspace is left are not divided.
    i32 partials = 0, decodes = 0, prefills = 0;
    for (int start = 0; start < p.num_sequences; start += threads) {
        const i32 i = start + thread;
        const bool exists = i < p.num_sequences;
        const i32 s = exists ? order[i] : 0;
        const Demand d = exists ? demand_of(p, s, prefixes.group_of(s)) : Demand{};
        const i32 num_splits = d.end_split - d.first_split;
        const bool may_divide = d.decode && num_splits > item_splits && !d.is_short;
        const i32 wanted = may_divide ? d.num_rows * num_splits : 0;
        const i32 partial_start = partials + block_scan(wanted, sums, total);
        partials += total;
        const bool is_divided = may_divide && partial_start + wanted <= p.decode_plan.partial_rows;
        const i32 num_items = is_divided ? divide_up(num_splits, item_splits) : 1;
        const i32 decode_start = decodes + block_scan(d.decode ? d.row_tiles * num_items : 0, sums, total);
        decodes += total;
        const Demand in_turn = exists ? demand_of(p, i, nullptr) : Demand{};
        const i32 prefill_start = prefills + block_scan(in_turn.decode ? 0 : in_turn.row_tiles, sums, total);
        prefills += total;
        if (exists) {
            decode_starts[i] = decode_start;
            prefill_starts[i] = prefill_start;
            partial_starts[i] = is_divided ? partial_start : -1;
        }
    }
    if (thread == 0) {
        decode_starts[p.num_sequences] = decodes;
        prefill_starts[p.num_sequences] = prefills;
        *p.counts = {decodes, prefills, p.query_starts[p.num_sequences], prefixes.num_items(), 0, 0};
    }
    __syncthreads();

    for (int i = thread; i < decodes; i += threads) {
        const i32 place = sequence_of(decode_starts, p.num_sequences, i), s = order[place];
        const Group* group = prefixes.group_of(s);
        const Demand d = demand_of(p, s, group);
        const i32 num_splits = d.end_split - d.first_split;
        const i32 num_items = partial_starts[place] < 0 ? 1 : divide_up(num_splits, item_splits);
        const i32 row_tile = (i - decode_starts[place]) / num_items, number = (i - decode_starts[place]) % num_items;
        Item item = whole_item(p, s, d, row_tile, DECODE_ROWS);
        if (group) prefixes.leave(item, *group);
        cut(item, d, {num_items, number, item_splits, partial_starts[place], i - number});
        p.decode_items[i] = item;
    }
    // Blocks take prefill items in turn, so those of many tiles come first. Within a class the items of a sequence stay
    // together, as they read the same keys.
    __shared__ i32 most_tiles, prefill_tiles;
    if (thread == 0) most_tiles = 1, prefill_tiles = 0;
    __syncthreads();
    auto prefill_item = [&](i32 i) {
        const i32 s = sequence_of(prefill_starts, p.num_sequences, i);
        const Demand d = demand_of(p, s, nullptr);
        const i32 row_tile = d.row_tiles - 1 - (i - prefill_starts[s]);  // those with most keys first
        return whole_item(p, s, d, row_tile, p.prefill.rows);
    };
    for (int i = thread; i < prefills; i += threads) {
        const Item item = prefill_item(i);
        atomicMax(&most_tiles, item.end_tile - item.first_tile);
        atomicAdd(&prefill_tiles, item.end_tile - item.first_tile);
    }
    __syncthreads();
    if (thread == 0) p.counts->prefill_sms = sms_for_prefill(p, prefill_tiles, all_splits * SPLIT_TILES);
    i32 place = 0;
    for (int c = p.prefill.classes - 1; c >= 0; c--)
        for (int start = 0; start < prefills; start += threads) {
            const int i = start + thread;
            Item item = {};
            if (i < prefills) item = prefill_item(i);
            const bool is_in =
                i < prefills && (item.end_tile - item.first_tile - 1) * p.prefill.classes / most_tiles == c;
            const i32 before = block_scan(is_in, sums, total);
            if (is_in) p.prefill_items[place + before] = item;
            place += total;
        }
    prefixes.list_items();
    wait_for_previous();
}
