// Divides what prefix groups attend to together among blocks: a part of attention_plan.
#pragma once
#include "attention_plan.cuh"

// What is attended to together; see `kernels.batch.PrefixGroups`.
struct PrefixPlanParams {
    const i32* groups;   // [num_groups, 3]: first member, number of members, number of tokens
    const i32* members;  // [num_sequences]
    PrefixItem* items;   // [as many as the shapes allow]
    i32 num_groups;      // at most MAX_GROUPS; 0: there are no arrays
    i32 item_rows;       // query rows of an item
    i32 wanted_items;    // into about so many items the work is divided when there are few rows
    i32 first_row;       // of the workspace, of those for states
    i32 num_rows;        // at least two for each query row
};

// A group, and how it is divided.
struct Group {
    i32 first_member, num_tiles, num_rows;
    i32 num_merged;  // KV splits that an item has; the states of those before the first so many are merged into one
    i32 num_ranges;  // items that each row tile is divided among
    i32 first_item;
    PrefixStates states;
};

DEVICE i32 divide_up(i32 a, i32 b) { return (a + b - 1) / b; }

// Exclusive sum of the warp's values; `total` gets the sum of all.
DEVICE i32 warp_scan(i32 value, i32& total) {
    const int lane = threadIdx.x % 32;
    i32 inclusive = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const i32 before = __shfl_up_sync(ALL_LANES, inclusive, distance);
        if (lane >= distance) inclusive += before;
    }
    total = __shfl_sync(ALL_LANES, inclusive, 31);
    return inclusive - value;
}

// One for a block; without groups it takes no time.
struct PrefixPlan {
    struct Shared {
        Group groups[MAX_GROUPS];
        i32 num_items;
    };

    const PrefixPlanParams& p;
    i32* memberships;  // [num_sequences, 2] in shared memory: group or -1, and number of the member
    i32 num_sequences;
    i32 heads;  // query heads per KV head

    DEVICE static Shared& shared() {
        __shared__ Shared shared;
        return shared;
    }
    DEVICE const Group* group_of(i32 sequence) const {
        const i32 group = p.num_groups ? memberships[2 * sequence] : -1;
        return group < 0 ? nullptr : &shared().groups[group];
    }
    DEVICE i32 num_items() const { return p.num_groups ? shared().num_items : 0; }

    // All threads call it.
    DEVICE void divide() const {
        if (!p.num_groups) return;
        for (i32 s = threadIdx.x; s < num_sequences; s += blockDim.x) memberships[2 * s] = -1;
        __syncthreads();
        for (i32 g = 0; g < p.num_groups; g++)
            for (i32 i = threadIdx.x; i < p.groups[3 * g + 1]; i += blockDim.x) {
                const i32 sequence = p.members[p.groups[3 * g] + i];
                memberships[2 * sequence] = g, memberships[2 * sequence + 1] = i;
            }
        static_assert(MAX_GROUPS <= 32, "a lane has a group");
        if (threadIdx.x < 32) divide(threadIdx.x);
        __syncthreads();
    }
    // One warp calls it; each lane has a group.
    DEVICE void divide(int lane) const {
        Group group = {};
        i32 num_splits = 0, all_pieces = 0, total, unused;
        if (lane < p.num_groups) {
            group.first_member = p.groups[3 * lane];
            group.num_rows = p.groups[3 * lane + 1] * heads;
            group.num_tiles = p.groups[3 * lane + 2] / TILE_KEYS;
            num_splits = group.num_tiles / SPLIT_TILES;
        }
        const i32 row_tiles = divide_up(group.num_rows, p.item_rows);
        const i32 num_pieces = divide_up(group.num_tiles, SPLIT_TILES);
        warp_scan(row_tiles * num_pieces, all_pieces);
        group.num_merged = max(1, divide_up(all_pieces, p.wanted_items));
        i32 num_states = max(num_splits - group.num_merged, 0) + 2;
        warp_scan(group.num_rows * num_states, total);
        if (total > p.num_rows) {  // with a single item for each row tile there is always room
            group.num_merged = 1 << 20;
            num_states = 2;
        }
        const i32 row = warp_scan(group.num_rows * num_states, total);
        group.num_ranges = divide_up(num_pieces, group.num_merged);
        const i32 first_item = warp_scan(row_tiles * group.num_ranges, total);
        group.first_item = first_item;
        group.states = {p.first_row + row, group.num_rows, num_states - 1};
        if (lane < MAX_GROUPS) shared().groups[lane] = group;
        if (lane == 0) shared().num_items = total;
    }

    // What an item of a member's rows leaves to the group.
    DEVICE void leave(Item& item, const Group& group) const {
        item.first_tile = max(item.first_tile, group.num_tiles);
        item.first_split = item.first_tile / SPLIT_TILES;
        item.prefix = group.states;
        item.prefix.row += memberships[2 * item.sequence + 1] * heads + item.first_row;
    }

    DEVICE void list_items() const {
        for (i32 i = threadIdx.x; i < num_items(); i += blockDim.x) {
            i32 g = 0;
            while (g + 1 < p.num_groups && shared().groups[g + 1].first_item <= i) g++;
            const Group& group = shared().groups[g];
            const i32 number = i - group.first_item, row_tile = number / group.num_ranges;
            const i32 range = number - row_tile * group.num_ranges, first_split = range * group.num_merged;
            PrefixItem item = {};
            item.first_member = group.first_member;
            item.sequence = p.members[group.first_member];
            item.first_row = row_tile * p.item_rows;
            item.num_rows = min(p.item_rows, group.num_rows - item.first_row);
            item.first_tile = first_split * SPLIT_TILES;
            item.end_tile = min(group.num_tiles, (first_split + group.num_merged) * SPLIT_TILES);
            item.states = group.states;
            item.states.row += item.first_row;
            item.first_state = range == 0 ? 0 : first_split - group.num_merged + 1;
            item.open_state = range == group.num_ranges - 1 ? group.states.num_closed : -1;
            p.items[i] = item;
        }
    }
};
