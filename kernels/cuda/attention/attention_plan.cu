// Lists the work of a step's attention on the device, once a step: lengths never travel to the host, and the grids of
// the attention kernels depend on array shapes only.
#include "attention_plan.cuh"

struct Params {
    const i32* query_starts;     // [num_sequences + 1]
    const i32* context_lengths;  // [num_sequences]
    PlanCounts* counts;          // [1]
    Item* decode_items;          // [as many as the shapes allow]
    Item* prefill_items;         // [as many as the shapes allow]
    i32* arrivals;               // [num_arrivals], zeroed here
    i32 num_sequences;
    i32 group;         // query heads per KV head
    i32 window;        // keys that a token sees, 0: all
    i32 prefill_rows;  // query rows of a prefill item, 0: everything is a decode item
    i32 split_items;   // into about so many items decode work is split when there are few sequences
    i32 partial_rows;  // rows of the workspace for split items
    i32 num_arrivals;
    i32 unused;
};

// What a sequence asks for.
struct Demand {
    i32 num_tokens, num_keys, num_rows;
    bool decode;
    i32 tiles;  // items before splitting
    i32 first_span, end_span;
};

DEVICE i32 divide_up(i32 a, i32 b) { return (a + b - 1) / b; }

DEVICE i32 lowest_key(const Params& p, i32 position) {
    return p.window && position >= p.window ? position - p.window + 1 : 0;
}

DEVICE Demand demand_of(const Params& p, i32 sequence) {
    Demand d = {};
    d.num_tokens = p.query_starts[sequence + 1] - p.query_starts[sequence];
    d.num_keys = p.context_lengths[sequence];
    if (d.num_tokens <= 0 || d.num_keys <= 0) return Demand{};
    d.num_rows = d.num_tokens * p.group;
    d.decode = d.num_tokens == 1 || d.num_rows <= DECODE_ROWS || !p.prefill_rows;
    d.tiles = divide_up(d.num_rows, d.decode ? DECODE_ROWS : p.prefill_rows);
    d.first_span = lowest_key(p, d.num_keys - d.num_tokens) / (UNIT_KEYS * SPAN_UNITS);
    d.end_span = divide_up(d.num_keys, UNIT_KEYS * SPAN_UNITS);
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
    i32 offset = 0;
    total = 0;
    for (int w = 0; w < (int)blockDim.x / 32; w++) {
        if (w < warp) offset += sums[w];
        total += sums[w];
    }
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

// The item of `rows` rows number `tile` of a sequence, over all keys that they see.
DEVICE Item whole_item(const Params& p, i32 sequence, const Demand& d, i32 tile, i32 rows) {
    Item item = {};
    item.sequence = sequence;
    item.first_token = p.query_starts[sequence];
    item.first_position = d.num_keys - d.num_tokens;
    item.first_row = tile * rows;
    item.num_rows = min(rows, d.num_rows - item.first_row);
    item.num_keys = d.num_keys;
    i32 last_position = item.first_position + (item.first_row + item.num_rows - 1) / p.group;
    item.first_unit = lowest_key(p, item.first_position + item.first_row / p.group) / UNIT_KEYS;
    item.end_unit = last_position / UNIT_KEYS + 1;
    item.first_span = item.first_unit / SPAN_UNITS;
    item.end_span = divide_up(item.end_unit, SPAN_UNITS);
    item.num_parts = 1;
    return item;
}

// One block, beside the kernel ahead.
KERNEL attention_plan(const __grid_constant__ Params p) {
    extern __shared__ i32 shared[];
    i32* decode_starts = shared;                                 // [num_sequences + 1]
    i32* prefill_starts = decode_starts + p.num_sequences + 1;   // [num_sequences + 1]
    i32* partial_starts = prefill_starts + p.num_sequences + 1;  // [num_sequences], -1: not split
    __shared__ i32 sums[32];
    start_next();
    acquire();

    const int thread = threadIdx.x, threads = blockDim.x;
    for (int i = thread; i < p.num_arrivals; i += threads) p.arrivals[i] = 0;

    // Spans per item, so that the work is about evenly spread.
    i32 spans = 0;
    for (int s = thread; s < p.num_sequences; s += threads) {
        Demand d = demand_of(p, s);
        if (d.decode) spans += d.tiles * (d.end_span - d.first_span);
    }
    i32 all_spans, total;
    block_scan(spans, sums, all_spans);
    const i32 part_spans = max(1, divide_up(all_spans, p.split_items));

    // Where each sequence's items and workspace rows begin. Sequences for which no workspace is left are not split.
    i32 partials = 0, decodes = 0, prefills = 0;
    for (int start = 0; start < p.num_sequences; start += threads) {
        const int s = start + thread;
        Demand d = s < p.num_sequences ? demand_of(p, s) : Demand{};
        const i32 num_spans = d.end_span - d.first_span;
        const bool may_split = d.decode && num_spans > part_spans;
        const i32 wanted = may_split ? d.num_rows * num_spans : 0;
        const i32 partial_start = partials + block_scan(wanted, sums, total);
        partials += total;
        const bool split = may_split && partial_start + wanted <= p.partial_rows;
        const i32 parts = split ? divide_up(num_spans, part_spans) : 1;
        const i32 decode_start = decodes + block_scan(d.decode ? d.tiles * parts : 0, sums, total);
        decodes += total;
        const i32 prefill_start = prefills + block_scan(d.decode ? 0 : d.tiles, sums, total);
        prefills += total;
        if (s < p.num_sequences) {
            decode_starts[s] = decode_start;
            prefill_starts[s] = prefill_start;
            partial_starts[s] = split ? partial_start : -1;
        }
    }
    if (thread == 0) {
        decode_starts[p.num_sequences] = decodes;
        prefill_starts[p.num_sequences] = prefills;
        *p.counts = {decodes, prefills, p.query_starts[p.num_sequences], 0};
    }
    __syncthreads();

    for (int i = thread; i < decodes; i += threads) {
        const i32 s = sequence_of(decode_starts, p.num_sequences, i);
        const Demand d = demand_of(p, s);
        const i32 num_spans = d.end_span - d.first_span;
        const i32 parts = partial_starts[s] < 0 ? 1 : divide_up(num_spans, part_spans);
        const i32 tile = (i - decode_starts[s]) / parts, part = (i - decode_starts[s]) % parts;
        Item item = whole_item(p, s, d, tile, DECODE_ROWS);
        if (parts > 1) {  // may come out without units: the parts are those of the sequence, not of the tile
            const i32 first = (d.first_span + part * part_spans) * SPAN_UNITS;
            item.first_unit = max(item.first_unit, first);
            item.end_unit = min(item.end_unit, first + part_spans * SPAN_UNITS);
            item.partial_row = partial_starts[s] + item.first_row * num_spans - d.first_span * item.num_rows;
            item.num_parts = parts;
            item.arrivals = i - part;
        }
        p.decode_items[i] = item;
    }
    for (int i = thread; i < prefills; i += threads) {
        const i32 s = sequence_of(prefill_starts, p.num_sequences, i);
        const Demand d = demand_of(p, s);
        const i32 tile = d.tiles - 1 - (i - prefill_starts[s]);  // those with most keys first
        p.prefill_items[i] = whole_item(p, s, d, tile, p.prefill_rows);
    }
    wait_for_previous();
}
