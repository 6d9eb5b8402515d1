// Words by which blocks of one kernel exchange what they compute, and barriers of some warps of a block.
#pragma once
#include "../common/common.cuh"

// ---- words. One holds a float32 or two float16, and is EMPTY until it is published: a NaN that no arithmetic gives.
// It is there as a whole or not at all and says nothing about other memory, so nothing has to be ordered.

constexpr u32 EMPTY = 0xFFFFFFFFu;
constexpr int MAX_POLLS = 1 << 21;  // of a second and more: a block is missing, and the kernel fails rather than hangs

DEVICE u32 load_word(const u32* from) {
    u32 word;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
    return word;
}
DEVICE uint4 load_quad(const u32* from) {
    uint4 quad;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(quad.x), "=r"(quad.y), "=r"(quad.z), "=r"(quad.w)
                 : "l"(from)
                 : "memory");
    return quad;
}
DEVICE uint2 load_pair(const u32* from) {
    uint2 pair;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(pair.x), "=r"(pair.y) : "l"(from) : "memory");
    return pair;
}
DEVICE bool has_come(uint2 pair) { return pair.x != EMPTY && pair.y != EMPTY; }
DEVICE bool has_come(uint4 quad) { return quad.x != EMPTY && quad.y != EMPTY && quad.z != EMPTY && quad.w != EMPTY; }

DEVICE void publish(u32* to, u32 word) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}
DEVICE void publish(u32* to, u32 word, u32 next) {
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(word), "r"(next) : "memory");
}

// A quad is nobody's any more.
DEVICE void make_empty(u32* quad) {
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(quad), "r"(EMPTY) : "memory");
}

// Two neighbouring lanes' values as a word of float16, in the even one.
DEVICE u32 word_of_halves(float y) {
    const u32 half = to_half(y);
    return half | __shfl_down_sync(ALL_LANES, half, 1) << 16;
}

// Calls load(i) for i < COUNT, together, until has_come(i) of all.
template <int COUNT, typename Load, typename HasCome>
DEVICE void await(Load load, HasCome has_come) {
#pragma unroll 1
    for (int poll = 0; poll < MAX_POLLS; poll++) {
        bool all = true;
#pragma unroll
        for (int i = 0; i < COUNT; i++) load(i);
#pragma unroll
        for (int i = 0; i < COUNT; i++) all = all && has_come(i);
        if (all) return;
    }
    __trap();
}
DEVICE u32 await_word(const u32* from) {
    u32 word;
    await<1>([&](int) { word = load_word(from); }, [&](int) { return word != EMPTY; });
    return word;
}
template <int COUNT>
DEVICE void await_quads(uint4 (&quads)[COUNT], const u32* const (&from)[COUNT]) {
    await<COUNT>([&](int i) { quads[i] = load_quad(from[i]); }, [&](int i) { return has_come(quads[i]); });
}

// ---- barriers of some warps of a block

DEVICE void sync_warps(int barrier, int num_warps) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(num_warps * 32) : "memory");
}
DEVICE void arrive_warps(int barrier, int num_warps) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(num_warps * 32) : "memory");
}
