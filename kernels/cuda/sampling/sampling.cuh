// What the sampling kernels share: rows of logits, their largest, reductions over a block, places in running sums.
//
// Whatever is summed is an integer, so that atomics and any split of a row over blocks give the same result: a row's
// draw depends on nothing but the row. Probabilities are counted in units of 2^-45 of the largest one.
#pragma once
#include "sampling_rank.cuh"

constexpr int QUADS = SLICE / (4 * THREADS);

// ---- reading

// Logits id .. id + 3 (id a multiple of 4) of a row of `vocab`; -inf beyond its end.
DEVICE float4 load_quad(const float* row, int id, int vocab) {
    if (vocab % 4 == 0)  // only then are rows aligned
        return id < vocab ? *(const float4*)(row + id)
                          : make_float4(NEGATIVE_INFINITY, NEGATIVE_INFINITY, NEGATIVE_INFINITY, NEGATIVE_INFINITY);
    return make_float4(id < vocab ? row[id] : NEGATIVE_INFINITY, id + 1 < vocab ? row[id + 1] : NEGATIVE_INFINITY,
                       id + 2 < vocab ? row[id + 2] : NEGATIVE_INFINITY,
                       id + 3 < vocab ? row[id + 3] : NEGATIVE_INFINITY);
}

// One slice, as quads of which the thread has those at id(0), id(1), ...: ascending in a thread.
struct Slice {
    float4 quad[QUADS];
    int start;

    DEVICE Slice(const float* row, int slice, int vocab) : start(slice * SLICE + 4 * (int)threadIdx.x) {
#pragma unroll
        for (int i = 0; i < QUADS; i++) quad[i] = load_quad(row, id(i), vocab);
    }
    DEVICE int id(int i) const { return start + i * 4 * THREADS; }
};

template <typename T>
DEVICE T read_once_more(const T* pointer) {  // what other blocks of this kernel wrote: past the L1 cache
    return *(const volatile T*)pointer;
}

// ---- reductions over a block of THREADS; every thread gets the result, `shared` may be used again at once

struct BlockScratch {
    u64 warp[THREADS / 32];
    u64 place_before;
    int place;
};

DEVICE u64 block_largest(u64 value, BlockScratch& shared) {
    value = warp_largest(value);
    if (threadIdx.x % 32 == 0) shared.warp[threadIdx.x / 32] = value;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; warp++) value = shared.warp[warp] > value ? shared.warp[warp] : value;
    __syncthreads();
    return value;
}

// Sum of the values of the threads before this one, and of all.
DEVICE u64 block_prefix(u64 value, u64& total, BlockScratch& shared) {
    u64 sum = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance <<= 1) {
        u64 below = __shfl_up_sync(ALL_LANES, sum, distance);
        if (threadIdx.x % 32 >= distance) sum += below;
    }
    if (threadIdx.x % 32 == 31) shared.warp[threadIdx.x / 32] = sum;
    __syncthreads();
    u64 before = sum - value;
    total = 0;
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; warp++) {
        if (warp < threadIdx.x / 32) before += shared.warp[warp];
        total += shared.warp[warp];
    }
    __syncthreads();
    return before;
}

DEVICE u64 block_sum(u64 value, BlockScratch& shared) {
    u64 total;
    block_prefix(value, total, shared);
    return total;
}

// The first of COUNT x THREADS amounts (thread t holds those from t * COUNT) with which the sum reaches `wanted`,
// and the sum before it. The sum starts at `before`. The first one if nothing is wanted, the last one if all is not
// enough.
struct Place {
    int index;
    u64 before;
};

template <int COUNT>
DEVICE Place find_place(const u64 (&amounts)[COUNT], u64 before, double wanted, BlockScratch& shared) {
    u64 own = 0, total;
#pragma unroll
    for (int i = 0; i < COUNT; i++) own += amounts[i];
    if (threadIdx.x == 0) {
        shared.place = (double)before < wanted ? COUNT * THREADS - 1 : 0;
        shared.place_before = before;
    }
    u64 sum = before + block_prefix(own, total, shared);
    if ((double)sum < wanted && (double)(sum + own) >= wanted) {
        int index = -1;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (index < 0 && (double)(sum + amounts[i]) >= wanted) index = i;
            if (index < 0) sum += amounts[i];
        }
        shared.place = threadIdx.x * COUNT + index;
        shared.place_before = sum;
    }
    __syncthreads();
    Place place = {shared.place, shared.place_before};
    __syncthreads();
    return place;
}

// ---- the ranks of groups

// The `wanted`-th largest (from 1 on) of the `num_groups` ranks of a row's groups, 0 if there are fewer, by counting
// how many are larger than each: they all differ, but for those that are 0. `copies` then holds them all.
DEVICE u64 wanted_rank(const u64* ranks, int num_groups, int wanted, u64* copies) {
    __shared__ u64 found;
    if (threadIdx.x == 0) found = 0;
    for (int i = threadIdx.x; i < num_groups; i += THREADS) copies[i] = ranks[i];
    __syncthreads();
    for (int i = threadIdx.x; i < num_groups; i += THREADS) {
        const u64 own = copies[i];
        int num_larger = 0;
#pragma unroll 8
        for (int other = 0; other < num_groups; other++) num_larger += copies[other] > own;
        if (num_larger == wanted - 1) found = own;
    }
    __syncthreads();
    const u64 rank = found;
    __syncthreads();
    return rank;
}

// ---- a row's largest logit, from the ranks that its scan left

// The largest of a row's `num_chunks` ranks. All lanes of a warp call it.
DEVICE u64 row_largest(const u64* ranks, int num_chunks) {
    u64 rank = 0;
#pragma unroll 1
    for (int first = threadIdx.x % 32; first < num_chunks; first += 4 * 32)
#pragma unroll
        for (int i = 0; i < 4; i++)  // loaded together
            rank = larger(rank, first + i * 32 < num_chunks ? ranks[first + i * 32] : 0);
    return warp_largest(rank);
}
