// Hopper's warpgroup products: d[64 x N] += a[64 x 16] b[16 x N], a in registers, b in shared memory.
// b lies as [N][64] float16, rows of 128 bytes whose 16-byte vectors are swizzled by the row (vector ^ row % 8), at a
// multiple of 1024 bytes. Lane and register hold the same places of a and d as in `mma_16x8x16`.
#pragma once
#include "common.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WGMMA 1

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Registers that wgmma writes, or reads, are not looked at by what comes after this before it.
template <int N>
DEVICE void settle(float (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}
// Descriptor of step 0 at `address`; each step of 16 columns adds 2.
DEVICE u64 wgmma_descriptor(u32 address) {
    return (u64)((address & 0x3FFFF) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// A warpgroup gives registers back, or takes some, until each of its threads has COUNT. All its warps call it.
template <int COUNT>
DEVICE void leave_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// The registers of d, N / 8 fours for N columns: as an instruction names them, and as its operands.
#define NAMES_8 "%0, %1, %2, %3"
#define NAMES_16 NAMES_8 ", %4, %5, %6, %7"
#define NAMES_32 NAMES_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_48 NAMES_32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define NAMES_64 NAMES_48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_80 NAMES_64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_96 NAMES_80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_128 NAMES_96 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_144 NAMES_128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define NAMES_160 NAMES_128 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define NAMES_192 NAMES_160 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_224 \
    NAMES_192 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define NAMES_256 \
    NAMES_224 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FOUR(d, i) "+f"((d)[i][0]), "+f"((d)[i][1]), "+f"((d)[i][2]), "+f"((d)[i][3])
#define OPERANDS_8(d) FOUR(d, 0)
#define OPERANDS_16(d) OPERANDS_8(d), FOUR(d, 1)
#define OPERANDS_32(d) OPERANDS_16(d), FOUR(d, 2), FOUR(d, 3)
#define OPERANDS_48(d) OPERANDS_32(d), FOUR(d, 4), FOUR(d, 5)
#define OPERANDS_64(d) OPERANDS_48(d), FOUR(d, 6), FOUR(d, 7)
#define OPERANDS_80(d) OPERANDS_64(d), FOUR(d, 8), FOUR(d, 9)
#define OPERANDS_96(d) OPERANDS_80(d), FOUR(d, 10), FOUR(d, 11)
#define OPERANDS_128(d) OPERANDS_96(d), FOUR(d, 12), FOUR(d, 13), FOUR(d, 14), FOUR(d, 15)
#define OPERANDS_144(d) OPERANDS_128(d), FOUR(d, 16), FOUR(d, 17)
#define OPERANDS_160(d) OPERANDS_128(d), FOUR(d, 16), FOUR(d, 17), FOUR(d, 18), FOUR(d, 19)
#define OPERANDS_192(d) OPERANDS_160(d), FOUR(d, 20), FOUR(d, 21), FOUR(d, 22), FOUR(d, 23)
#define OPERANDS_224(d) OPERANDS_192(d), FOUR(d, 24), FOUR(d, 25), FOUR(d, 26), FOUR(d, 27)
#define OPERANDS_256(d) OPERANDS_224(d), FOUR(d, 28), FOUR(d, 29), FOUR(d, 30), FOUR(d, 31)
#define INSTRUCTION(N) "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" NAMES_##N "}, "

// The numbers behind N are those of the operands that come after d.
#define WGMMA_64(N, A0, A1, A2, A3, B)                                                               \
    DEVICE void wgmma_64(float (&d)[N / 8][4], const u32(&a)[4], u64 b) {                            \
        asm volatile(INSTRUCTION(N) "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 0;" \
                     : OPERANDS_##N(d)                                                               \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                          \
    }
WGMMA_64(16, 8, 9, 10, 11, 12)
WGMMA_64(32, 16, 17, 18, 19, 20)
WGMMA_64(48, 24, 25, 26, 27, 28)
WGMMA_64(64, 32, 33, 34, 35, 36)
WGMMA_64(80, 40, 41, 42, 43, 44)
WGMMA_64(96, 48, 49, 50, 51, 52)
WGMMA_64(128, 64, 65, 66, 67, 68)
WGMMA_64(160, 80, 81, 82, 83, 84)
WGMMA_64(192, 96, 97, 98, 99, 100)
WGMMA_64(224, 112, 113, 114, 115, 116)
WGMMA_64(256, 128, 129, 130, 131, 132)

// The same with a in shared memory, too, as [64][64] float16 that lies as b does; `adds`: to d, which else begins anew.
#define WGMMA_64_SHARED(N, A, B, ADDS)                                                                   \
    DEVICE void wgmma_64(float (&d)[N / 8][4], u64 a, u64 b, bool adds) {                                \
        asm volatile("{.reg .pred p; setp.ne.u32 p, %" #ADDS ", 0;\n" INSTRUCTION(N) "%" #A ", %" #B     \
                                                                                     ", p, 1, 1, 0, 0;}" \
                     : OPERANDS_##N(d)                                                                   \
                     : "l"(a), "l"(b), "r"((u32)adds));                                                  \
    }
WGMMA_64_SHARED(32, 16, 17, 18)
WGMMA_64_SHARED(48, 24, 25, 26)
WGMMA_64_SHARED(64, 32, 33, 34)
WGMMA_64_SHARED(96, 48, 49, 50)
WGMMA_64_SHARED(128, 64, 65, 66)
WGMMA_64_SHARED(144, 72, 73, 74)
WGMMA_64_SHARED(160, 80, 81, 82)
WGMMA_64_SHARED(192, 96, 97, 98)
WGMMA_64_SHARED(256, 128, 129, 130)

// The same with a in registers again. COLUMNS: b lies as [16][N] float16, in panels of 64 columns, whose rows have 128
// bytes and are swizzled as above.
#define WGMMA_ROWS(N, A0, A1, A2, A3, B, ADDS, IN_COLUMNS)                                                           \
    template <bool COLUMNS>                                                                                          \
    DEVICE void wgmma_rows(float (&d)[N / 8][4], const u32(&a)[4], u64 b, bool adds) {                               \
        asm volatile("{.reg .pred p; setp.ne.u32 p, %" #ADDS ", 0;\n" INSTRUCTION(N) "{%" #A0 ", %" #A1 ", %" #A2    \
                                                                                     ", %" #A3 "}, %" #B             \
                                                                                     ", p, 1, 1, %" #IN_COLUMNS ";}" \
                     : OPERANDS_##N(d)                                                                               \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((u32)adds), "n"((int)COLUMNS));       \
    }
WGMMA_ROWS(8, 4, 5, 6, 7, 8, 9, 10)
WGMMA_ROWS(16, 8, 9, 10, 11, 12, 13, 14)
WGMMA_ROWS(32, 16, 17, 18, 19, 20, 21, 22)
WGMMA_ROWS(64, 32, 33, 34, 35, 36, 37, 38)
WGMMA_ROWS(96, 48, 49, 50, 51, 52, 53, 54)
WGMMA_ROWS(128, 64, 65, 66, 67, 68, 69, 70)

// Descriptor of b with COLUMNS: panels of `rows` rows each.
DEVICE u64 wgmma_columns_descriptor(u32 address, int rows) {
    return (u64)((address & 0x3FFFF) >> 4) | (u64)(rows * 128 >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

#undef NAMES_8
#undef NAMES_16
#undef NAMES_32
#undef NAMES_48
#undef NAMES_64
#undef NAMES_80
#undef NAMES_96
#undef NAMES_128
#undef NAMES_144
#undef NAMES_160
#undef NAMES_192
#undef NAMES_224
#undef NAMES_256
#undef OPERANDS_8
#undef OPERANDS_16
#undef OPERANDS_32
#undef OPERANDS_48
#undef OPERANDS_64
#undef OPERANDS_80
#undef OPERANDS_96
#undef OPERANDS_128
#undef OPERANDS_144
#undef OPERANDS_160
#undef OPERANDS_192
#undef OPERANDS_224
#undef OPERANDS_256
#undef FOUR
#undef INSTRUCTION
#undef WGMMA_64
#undef WGMMA_64_SHARED
#undef WGMMA_ROWS

#else
#define HAS_WGMMA 0
#endif
