// What every kernel uses: fixed-width types, float16 in registers, tensor core and copy instructions, launch order.
// Free of CUDA's own headers, so that the bare NVRTC library is enough to compile. Constants of any file here that
// Python needs, too, are declared there: see `kernels/runtime/cuda_constants.py`.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef short i16;
typedef unsigned short u16;  // also the storage of one float16
typedef unsigned int u32;    // also two float16, the first in the low half
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void

constexpr u32 ALL_LANES = 0xFFFFFFFFu;
constexpr float NEGATIVE_INFINITY = __builtin_bit_cast(float, 0xFF800000u);

// ---- float16

// Rounds to nearest; what float16 cannot hold becomes its largest number, NaN stays NaN.
DEVICE u32 pack_half2(float low, float high) {
    u32 packed;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

DEVICE u16 to_half(float value) { return (u16)pack_half2(value, 0.0f); }

DEVICE float from_half(u16 value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
    return wide;
}

DEVICE float low_half(u32 pair) { return from_half((u16)pair); }
DEVICE float high_half(u32 pair) { return from_half((u16)(pair >> 16)); }

DEVICE u32 half2_multiply(u32 a, u32 b) {
    u32 r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
DEVICE u32 half2_add(u32 a, u32 b) {
    u32 r;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
DEVICE u32 half2_fma(u32 a, u32 b, u32 c) {
    u32 r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
// One of two in both halves. Not by a byte permute: this way the instruction that uses it takes the half itself.
DEVICE u32 half2_low(u32 pair) {
    u32 r;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {low, low};}" : "=r"(r) : "r"(pair));
    return r;
}
DEVICE u32 half2_high(u32 pair) {
    u32 r;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {high, high};}" : "=r"(r) : "r"(pair));
    return r;
}
DEVICE u32 half2_both(u16 value) { return value | (u32)value << 16; }

// ---- pairs of int16

DEVICE u32 int16_add(u32 a, u32 b) {
#if __CUDA_ARCH__ >= 900
    u32 r;
    asm("add.s16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
#else
    return (a & 0xFFFF0000) + (b & 0xFFFF0000) | (a + b & 0xFFFF);
#endif
}
DEVICE u32 int16_max(u32 a, u32 b) {
#if __CUDA_ARCH__ >= 900
    u32 r;
    asm("max.s16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
#else
    return (u32)max((i32)a >> 16, (i32)b >> 16) << 16 | max((i32)(i16)a, (i32)(i16)b) & 0xFFFF;
#endif
}

// ---- bytes

// Four of the bytes of `low` and `high`: those that the low three bits of the nibbles of `selector` name; where a
// nibble's top bit is set, that byte's top bit eight times.
DEVICE u32 select_bytes(u32 low, u32 high, u32 selector) {
    u32 r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(selector));
    return r;
}

// ---- order: a value that is to be ready before what follows, not put off to where it is used

template <typename T>
DEVICE void compute_now(T*& value) {
    asm volatile("" : "+l"(value));
}
DEVICE void compute_now(i64& value) { asm volatile("" : "+l"(value)); }
DEVICE void compute_now(u32& value) { asm volatile("" : "+r"(value)); }
DEVICE void compute_now(int& value) { asm volatile("" : "+r"(value)); }
DEVICE void compute_now(float& value) { asm volatile("" : "+f"(value)); }

// ---- warps

DEVICE float warp_sum(float value) {  // the same bits in every lane
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}
// One step of `warp_sums`, and those that follow. (Not a loop: compilers do not unroll it for 16 values.)
template <int HALF, int DISTANCE, int COUNT>
DEVICE void warp_sums_from(float (&values)[COUNT]) {
    if constexpr (DISTANCE > 0) {
        const bool upper = threadIdx.x & DISTANCE;
        if constexpr (HALF == 0) values[0] += __shfl_xor_sync(ALL_LANES, values[0], DISTANCE);
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            const float kept = upper ? values[i + HALF] : values[i], given = upper ? values[i] : values[i + HALF];
            values[i] = kept + __shfl_xor_sync(ALL_LANES, given, DISTANCE);
        }
        warp_sums_from<HALF / 2, DISTANCE / 2>(values);
    }
}
// Sums COUNT (a power of 2) values at once: lane l gets the sum of values[l / (32 / COUNT)], in the order of
// `warp_sum`.
template <int COUNT>
DEVICE float warp_sums(float (&values)[COUNT]) {
    warp_sums_from<COUNT / 2, 16>(values);
    return values[0];
}
DEVICE float warp_max(float value) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// ---- tensor core: d[16 x 8] += a[16 x 16] b[16 x 8], float16 in, float32 out.
// Lane 4g + t holds a0: (row g, k 2t..2t+1), a1: (g + 8, same), a2: (g, 2t+8..), a3: (g + 8, 2t+8..);
// b0: (k 2t..2t+1, column g), b1: (k 2t+8.., g); d0, d1: (row g, columns 2t, 2t+1), d2, d3: (g + 8, same).
DEVICE void mma_16x8x16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Loads four 8 x 8 matrices of float16; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
DEVICE void load_matrices_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// ---- asynchronous copies to shared memory, 16 bytes each

DEVICE void copy_async_bytes(u32 shared, const void* global, int size) {  // the first `size`, and zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(size) : "memory");
}
DEVICE void copy_async(u32 shared, const void* global, bool wanted) {  // or zeros
    copy_async_bytes(shared, global, wanted ? 16 : 0);
}
template <int BYTES>  // 4, 8 or 16
DEVICE void copy_words(u32 shared, const void* global) {
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(global), "n"(BYTES) : "memory");
}
DEVICE void copy_if(bool wanted, u32 shared, const void* global) {  // 16 bytes, without a branch
    asm volatile("{.reg .pred p; setp.ne.u32 p, %0, 0; @p cp.async.cg.shared.global [%1], [%2], 16;}"
                 :
                 : "r"((u32)wanted), "r"(shared), "l"(global)
                 : "memory");
}
template <int WORDS>  // 1, 2 or 4
DEVICE void load_words(u32* to, u32 shared) {
    if constexpr (WORDS == 4)
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(shared)
                     : "memory");
    if constexpr (WORDS == 2)
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "r"(shared) : "memory");
    if constexpr (WORDS == 1) asm volatile("ld.shared.u32 %0, [%1];" : "=r"(to[0]) : "r"(shared) : "memory");
}
template <int WORDS>  // 2 or 4
DEVICE void store_words(u32 shared, const u32* from) {
    if constexpr (WORDS == 4)
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(from[0]), "r"(from[1]), "r"(from[2]),
                     "r"(from[3])
                     : "memory");
    if constexpr (WORDS == 2)
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(shared), "r"(from[0]), "r"(from[1]) : "memory");
}
DEVICE void store_float(u32 shared, float value) {
    asm volatile("st.shared.f32 [%0], %1;" : : "r"(shared), "f"(value) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- global memory

DEVICE uint4 load_streaming(const uint4* pointer) {  // weights: read once, kept out of the way of what is reused
    uint4 v;
    asm volatile("ld.global.cs.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(pointer));
    return v;
}

template <int WORDS>  // 1, 2 or 4: weights again, if they are `wanted`
DEVICE void load_streaming_if(bool wanted, u32* to, const u8* from) {
    if constexpr (WORDS == 4)
        asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];}"
                     : "+r"(to[0]), "+r"(to[1]), "+r"(to[2]), "+r"(to[3])
                     : "l"(from), "r"((u32)wanted));
    if constexpr (WORDS == 2)
        asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; @p ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];}"
                     : "+r"(to[0]), "+r"(to[1])
                     : "l"(from), "r"((u32)wanted));
    if constexpr (WORDS == 1)
        asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.nc.L1::no_allocate.u32 %0, [%1];}"
                     : "+r"(to[0])
                     : "l"(from), "r"((u32)wanted));
}

// What another kernel may be writing, or what is not to come from this SM's L1 cache.
DEVICE int load_relaxed(const int* from) {
    int value;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
DEVICE float load_relaxed(const float* from) { return __int_as_float(load_relaxed((const int*)from)); }

// ---- programmatic dependent launch (Hopper and later; elsewhere kernels simply follow each other).
// Every kernel calls `wait_for_previous` before it reads or writes what the previous kernel writes, or writes what that
// one reads. The next kernel starts once all blocks have called it, so that at most two kernels run at once: by then
// all but the previous kernel is done, and the next one prepares itself while this one works. (Starting the next one
// earlier was slower: blocks that wait take the room of those that would work.)
//
// A kernel that has few blocks, and less to do than the way to the next one's start takes, may call `start_next` when
// it begins. The next one must then wait before it reads or writes anything that kernels write: more than the previous
// one may still be at work. Where that one has waited all are done, as each has waited for the one before it.

DEVICE void start_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    start_next();
}

// Into the L2 cache. What a step reads only once is not there any more: the weights have gone through it since the step
// before. A kernel may call it before `wait_for_previous`, of what any kernel writes.
DEVICE void prefetch(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// For a kernel that overlaps the previous one: what it reads was complete before that one began, and it waits only at
// its end. The next kernel may start at once, and waits for both. Nothing may come from this SM's L1 cache.
DEVICE void acquire() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
