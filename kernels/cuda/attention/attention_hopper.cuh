// What a warpgroup of attention_hopper.cu does with tiles of keys and values.
#pragma once
#include "../common/bulk.cuh"
#include "../common/wgmma.cuh"
#include "attention.cuh"

constexpr int WARPGROUP = 128;
constexpr int PANELS = (HEAD_DIM + 63) / 64, PANEL_BYTES = TILE_KEYS * 128;
constexpr int KEY_BYTES = PANELS * PANEL_BYTES, STAGE_BYTES = 2 * KEY_BYTES;  // keys, then values
constexpr bool IS_NARROW = PREFILL_GROUPS == 1;
constexpr int THREADS = PREFILL_GROUPS * WARPGROUP + (IS_NARROW ? 32 : WARPGROUP);

// What registers are for: merged splits, or else these are in shared memory; queries, or else the tensor cores read
// these there, too; and a way of their own for tiles that begin a split.
constexpr bool KEEPS_WHOLE = HEAD_DIM <= 64 && !IS_NARROW, SHARES_QUERIES = HEAD_DIM > 96;
constexpr bool HAS_TWO_STEPS = KEEPS_WHOLE || SHARES_QUERIES;

// Shared memory, in this order.
constexpr int WHOLE_BYTES = KEEPS_WHOLE ? 0 : 64 * HEAD_DIM * 4;  // of a warpgroup
constexpr int ONES_BYTES = 1024;                                  // a matrix of 8 columns of ones, as wgmma reads it
constexpr int OWN_QUERY_BYTES = SHARES_QUERIES ? PANELS * PANEL_BYTES : 0;
constexpr int WHOLES_AT = KV_STAGES * STAGE_BYTES, ONES_AT = WHOLES_AT + PREFILL_GROUPS * WHOLE_BYTES;
constexpr int QUERIES_AT = ONES_AT + ONES_BYTES, BARRIERS_AT = QUERIES_AT + PREFILL_GROUPS * OWN_QUERY_BYTES;

constexpr int QUEUED = 2;        // numbers of work that wait for the warpgroups
constexpr int OWN_BARRIERS = 1;  // named barriers of each warpgroup

struct Barriers {
    u32 keys, values, empty;     // KV_STAGES of each
    u32 queued, taken, numbers;  // QUEUED of each; numbers of `Work`
    DEVICE explicit Barriers(u32 at) : keys(at), values(at + 8 * KV_STAGES), empty(at + 16 * KV_STAGES) {
        queued = at + 24 * KV_STAGES, taken = queued + 8 * QUEUED, numbers = taken + 8 * QUEUED;
    }
};

// What lies behind a sequence's last key may be NaN, which no weight of 0 takes out of a sum. All threads of a
// warpgroup call it; the others may do the same meanwhile.
DEVICE void clear_rows(u8* values, int first, int barrier) {
    for (int i = threadIdx.x % WARPGROUP; i < PANELS * TILE_KEYS * 8; i += WARPGROUP)
        if (i / 8 % TILE_KEYS >= first) ((uint4*)values)[i] = {0, 0, 0, 0};
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    synchronise(barrier, WARPGROUP);
}

// A thread's merged splits, kept in registers, or in shared memory where nobody else looks at them.
struct Whole {
    float m[2], l[2];
    float4 kept[KEEPS_WHOLE ? HEAD_DIM / 8 : 1];
    float4* o;  // else element i of this thread at o[i * WARPGROUP]
    DEVICE float4& at(int n) {
        if constexpr (KEEPS_WHOLE)
            return kept[n];
        else
            return o[n * WARPGROUP];
    }
};

// whole := whole + split.
DEVICE void close_split(Whole& whole, const Partial<1>& split) {
    float keep[2], add[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        whole.m[half] = merge_weights(whole.m[half], split.m[0][half], keep[half], add[half]);
        whole.l[half] = merged(whole.l[half], keep[half], split.l[0][half], add[half]);
    }
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
        float4& o = whole.at(n);
        const float (&s)[4] = split.o[0][n];
        o = {merged(o.x, keep[0], s[0], add[0]), merged(o.y, keep[0], s[1], add[0]), merged(o.z, keep[1], s[2], add[1]),
             merged(o.w, keep[1], s[3], add[1])};
    }
}

DEVICE void write_rows(const AttentionParams& p, const Item& item, i32 kv_head, i32 first, Whole& whole) {
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
            const float4 o = whole.at(n);
            out[4 * n] = half ? pack_half2(o.z * factor, o.w * factor) : pack_half2(o.x * factor, o.y * factor);
        }
    }
}

// A number that is the same in all lanes, so that the compiler knows.
DEVICE u32 uniform(u32 number) { return __shfl_sync(ALL_LANES, number, 0); }

// What a warpgroup does with a tile's keys and values. The tensor cores multiply the keys of one tile while they
// multiply the values of the one before and its weights are merged.
struct Tiles {
    const AttentionParams& p;
    const Barriers& barriers;
    const u32 stages;
    u8* const shared;
    const int warpgroup;
    const u64 ones, queries;
    RingPlace place;  // of the tile that is merged next

    DEVICE Tiles(const AttentionParams& p, const Barriers& barriers, u32 stages, u8* shared, int warpgroup)
        : p(p),
          barriers(barriers),
          stages(uniform(stages)),
          shared(shared),
          warpgroup(warpgroup),
          ones(wgmma_descriptor(stages + ONES_AT)),
          queries(wgmma_descriptor(stages + QUERIES_AT + warpgroup * OWN_QUERY_BYTES)) {}

    // Puts a warp's 16 rows where wgmma reads queries, if it does. All threads of the warpgroup call it.
    DEVICE void share(const Rows<1>& rows) const {
        if constexpr (SHARES_QUERIES) {
            static_assert(PANEL_BYTES == 64 * 128, "as many rows of queries as keys of a tile");
            const int lane = threadIdx.x % 32, g = lane / 4, row = threadIdx.x / 32 % 4 * 16 + g;
            const u32 to = stages + QUERIES_AT + warpgroup * OWN_QUERY_BYTES + row * 128 + lane % 4 * 4;
#pragma unroll
            for (int k = 0; k < CHUNKS; k++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + k / 4 * PANEL_BYTES + i % 2 * (8 * 128) +
                                                                 (((k % 4 * 2 + i / 2) ^ g) << 4)),
                                 "r"(rows.queries[0][k][i])
                                 : "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            synchronise(OWN_BARRIERS + warpgroup, WARPGROUP);
        }
    }

    DEVICE void leave() {
        if (threadIdx.x % 32 == 0) barrier_arrive(barriers.empty + 8 * place.stage);
        place.advance(KV_STAGES);
    }
    // A tile of which none of the warpgroup's rows sees a key.
    DEVICE void pass() {
        barrier_wait(barriers.keys + 8 * place.stage, place.phase);
        leave();
    }
    // Begins to multiply the queries by the keys at `at`.
    DEVICE void begin_scores(float (&s)[1][TILE_KEYS / 8][4], const Rows<1>& rows, const RingPlace& at) const {
        barrier_wait(barriers.keys + 8 * at.stage, at.phase);
        const u64 b = wgmma_descriptor(stages) + uniform(at.stage) * (STAGE_BYTES / 16);
        settle(s[0]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            const int at_k = k / 4 * (PANEL_BYTES / 16) + k % 4 * 2;
            if constexpr (SHARES_QUERIES)
                wgmma_64(s[0], queries + at_k, b + at_k, k > 0);
            else
                wgmma_rows<false>(s[0], rows.queries[0][k], b + at_k, k > 0);
        }
        wgmma_commit();
    }
    DEVICE void await_values(const RingPlace& at) const { barrier_wait(barriers.values + 8 * at.stage, at.phase); }
    // Begins to add up weights, and values by them, of which there are `num_keys`.
    DEVICE void begin_values(float (&sums)[1][4], float (&o)[HEAD_DIM / 8][4], const Weights<1>& weights,
                             i32 num_keys) const {
        if (num_keys < TILE_KEYS)
            clear_rows(shared + place.stage * STAGE_BYTES + KEY_BYTES, num_keys, OWN_BARRIERS + warpgroup);
        const u64 v =
            wgmma_columns_descriptor(stages + KEY_BYTES, TILE_KEYS) + uniform(place.stage) * (STAGE_BYTES / 16);
        settle(o);
        settle(sums);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < TILE_GROUPS; j++) {
            wgmma_rows<false>(sums, weights.p[0][j], ones, j > 0);
            wgmma_rows<true>(o, weights.p[0][j], v + j * (KEY_GROUP * 128 / 16), j > 0);
        }
        wgmma_commit();
    }
};

// split := split + a tile with largest scores `m`: what does not need the tile's sums comes first.
struct TileMerge {
    float add[2];
    DEVICE TileMerge(Partial<1>& split, const float (&m)[2]) {
        float keep[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            split.m[0][half] = merge_weights(split.m[0][half], m[half], keep[half], add[half]);
            split.l[0][half] = __fmul_rn(split.l[0][half], keep[half]);
        }
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) split.o[0][n][c] = __fmul_rn(split.o[0][n][c], keep[c >> 1]);
    }
    DEVICE void end(Partial<1>& split, const float (&sums)[1][4], const float (&o)[HEAD_DIM / 8][4]) const {
#pragma unroll
        for (int half = 0; half < 2; half++)
            split.l[0][half] = __fmaf_rn(sums[0][2 * half], add[half], split.l[0][half]);
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) split.o[0][n][c] = __fmaf_rn(o[n][c], add[c >> 1], split.o[0][n][c]);
    }
};

// What becomes of a tile's products with the queries.
struct Scores {
    float s[1][TILE_KEYS / 8][4], m[1][2];
    Weights<1> weights;

    DEVICE void weigh(const Rows<1>& rows, i32 tile, const AttentionParams& p) {
        raise_scores(s, m, rows, tile * TILE_KEYS, p, 2);
        pack_weights(weights, s, 2);
    }
};

// Makes powers of the scores of tile `next`, at `ahead`, while the tensor cores still multiply values, and waits for
// these.
DEVICE void end_products(float (&o)[HEAD_DIM / 8][4], float (&sums)[1][4], Scores& scores, Tiles& tiles,
                         const Rows<1>& rows, i32 next, const RingPlace& ahead) {
    wgmma_wait<1>();
    settle(scores.s[0]);
    raise_scores(scores.s, scores.m, rows, next * TILE_KEYS, tiles.p, 2);
    settle(scores.s[0]);
    tiles.await_values(ahead);  // here, so that the compiler leaves the wait behind it where it is
    wgmma_wait<0>();
    settle(scores.s[0]);
    settle(o);
    settle(sums);
    tiles.leave();
}

// Adds the tile of `scores` to the split, or begins it with that, while the weights of tile `next` are made.
template <bool BEGINS>
DEVICE void add_tile(Partial<1>& split, Scores& scores, Tiles& tiles, const Rows<1>& rows, i32 next) {
    float added[HEAD_DIM / 8][4], sums[1][4];
    float (&o)[HEAD_DIM / 8][4] = BEGINS ? split.o[0] : added;
    RingPlace ahead = tiles.place;
    ahead.advance(KV_STAGES);
    tiles.begin_scores(scores.s, rows, ahead);
    tiles.begin_values(sums, o, scores.weights, TILE_KEYS);
    if constexpr (BEGINS) {
        split.m[0][0] = scores.m[0][0], split.m[0][1] = scores.m[0][1];
        end_products(o, sums, scores, tiles, rows, next, ahead);
        split.l[0][0] = sums[0][0], split.l[0][1] = sums[0][2];
    } else {
        const TileMerge merge(split, scores.m[0]);
        settle(split.o[0]);
        end_products(o, sums, scores, tiles, rows, next, ahead);
        merge.end(split, sums, o);
    }
    pack_weights(scores.weights, scores.s, 2);
}
