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

// Four registers of d among the operands of an instruction.
#define FOUR(d) "+f"((d)[0]), "+f"((d)[1]), "+f"((d)[2]), "+f"((d)[3])

DEVICE void wgmma_64(float (&d)[2][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7"
        "}, {%8, %9, %10, %11}, %12, 1, 1, 1, 0;"
        : FOUR(d[0]), FOUR(d[1])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

DEVICE void wgmma_64(float (&d)[4][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
        : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

DEVICE void wgmma_64(float (&d)[6][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n48k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23"
        "}, {%24, %25, %26, %27}, %28, 1, 1, 1, 0;"
        : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

DEVICE void wgmma_64(float (&d)[8][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
        : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

DEVICE void wgmma_64(float (&d)[10][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n80k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39"
        "}, {%40, %41, %42, %43}, %44, 1, 1, 1, 0;"
        : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7]), FOUR(d[8]),
          FOUR(d[9])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

DEVICE void wgmma_64(float (&d)[12][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
        "}, {%48, %49, %50, %51}, %52, 1, 1, 1, 0;"
        : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7]), FOUR(d[8]),
          FOUR(d[9]), FOUR(d[10]), FOUR(d[11])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

DEVICE void wgmma_64(float (&d)[16][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
        : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7]), FOUR(d[8]),
          FOUR(d[9]), FOUR(d[10]), FOUR(d[11]), FOUR(d[12]), FOUR(d[13]), FOUR(d[14]), FOUR(d[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

DEVICE void wgmma_64(float (&d)[20][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n160k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
        "}, {%80, %81, %82, %83}, %84, 1, 1, 1, 0;"
        : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7]), FOUR(d[8]),
          FOUR(d[9]), FOUR(d[10]), FOUR(d[11]), FOUR(d[12]), FOUR(d[13]), FOUR(d[14]), FOUR(d[15]), FOUR(d[16]),
          FOUR(d[17]), FOUR(d[18]), FOUR(d[19])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

DEVICE void wgmma_64(float (&d)[24][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, {%96, %97, %98, %99}, %100, 1, 1, 1, 0;"
        : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7]), FOUR(d[8]),
          FOUR(d[9]), FOUR(d[10]), FOUR(d[11]), FOUR(d[12]), FOUR(d[13]), FOUR(d[14]), FOUR(d[15]), FOUR(d[16]),
          FOUR(d[17]), FOUR(d[18]), FOUR(d[19]), FOUR(d[20]), FOUR(d[21]), FOUR(d[22]), FOUR(d[23])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

DEVICE void wgmma_64(float (&d)[28][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n224k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
        "}, {%112, %113, %114, %115}, %116, 1, 1, 1, 0;"
        : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7]), FOUR(d[8]),
          FOUR(d[9]), FOUR(d[10]), FOUR(d[11]), FOUR(d[12]), FOUR(d[13]), FOUR(d[14]), FOUR(d[15]), FOUR(d[16]),
          FOUR(d[17]), FOUR(d[18]), FOUR(d[19]), FOUR(d[20]), FOUR(d[21]), FOUR(d[22]), FOUR(d[23]), FOUR(d[24]),
          FOUR(d[25]), FOUR(d[26]), FOUR(d[27])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

DEVICE void wgmma_64(float (&d)[32][4], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 0;"
        : FOUR(d[0]), FOUR(d[1]), FOUR(d[2]), FOUR(d[3]), FOUR(d[4]), FOUR(d[5]), FOUR(d[6]), FOUR(d[7]), FOUR(d[8]),
          FOUR(d[9]), FOUR(d[10]), FOUR(d[11]), FOUR(d[12]), FOUR(d[13]), FOUR(d[14]), FOUR(d[15]), FOUR(d[16]),
          FOUR(d[17]), FOUR(d[18]), FOUR(d[19]), FOUR(d[20]), FOUR(d[21]), FOUR(d[22]), FOUR(d[23]), FOUR(d[24]),
          FOUR(d[25]), FOUR(d[26]), FOUR(d[27]), FOUR(d[28]), FOUR(d[29]), FOUR(d[30]), FOUR(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// The registers of d, sixteen at a time: as an instruction names them, and as its operands.
#define REGISTERS_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define REGISTERS_1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define REGISTERS_3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define REGISTERS_5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define REGISTERS_6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define REGISTERS_7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SIXTEEN(d, i) FOUR((d)[4 * (i)]), FOUR((d)[4 * (i) + 1]), FOUR((d)[4 * (i) + 2]), FOUR((d)[4 * (i) + 3])

// The same with a in shared memory, too, as [64][64] float16 that lies as b does; `adds`: to d, which else begins anew.
DEVICE void wgmma_64(float (&d)[16][4], u64 a, u64 b, bool adds) {
    asm volatile(
        "{.reg .pred p; setp.ne.u32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" REGISTERS_0 ", " REGISTERS_1 ", " REGISTERS_2
        ", " REGISTERS_3 "}, %64, %65, p, 1, 1, 0, 0;}"
        : SIXTEEN(d, 0), SIXTEEN(d, 1), SIXTEEN(d, 2), SIXTEEN(d, 3)
        : "l"(a), "l"(b), "r"((u32)adds));
}

DEVICE void wgmma_64(float (&d)[20][4], u64 a, u64 b, bool adds) {
    asm volatile(
        "{.reg .pred p; setp.ne.u32 p, %82, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n160k16.f32.f16.f16 {" REGISTERS_0 ", " REGISTERS_1 ", " REGISTERS_2
        ", " REGISTERS_3 ", " REGISTERS_4 "}, %80, %81, p, 1, 1, 0, 0;}"
        : SIXTEEN(d, 0), SIXTEEN(d, 1), SIXTEEN(d, 2), SIXTEEN(d, 3), SIXTEEN(d, 4)
        : "l"(a), "l"(b), "r"((u32)adds));
}

DEVICE void wgmma_64(float (&d)[24][4], u64 a, u64 b, bool adds) {
    asm volatile(
        "{.reg .pred p; setp.ne.u32 p, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.f16.f16 {" REGISTERS_0 ", " REGISTERS_1 ", " REGISTERS_2
        ", " REGISTERS_3 ", " REGISTERS_4 ", " REGISTERS_5 "}, %96, %97, p, 1, 1, 0, 0;}"
        : SIXTEEN(d, 0), SIXTEEN(d, 1), SIXTEEN(d, 2), SIXTEEN(d, 3), SIXTEEN(d, 4), SIXTEEN(d, 5)
        : "l"(a), "l"(b), "r"((u32)adds));
}

DEVICE void wgmma_64(float (&d)[32][4], u64 a, u64 b, bool adds) {
    asm volatile(
        "{.reg .pred p; setp.ne.u32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" REGISTERS_0 ", " REGISTERS_1 ", " REGISTERS_2
        ", " REGISTERS_3 ", " REGISTERS_4 ", " REGISTERS_5 ", " REGISTERS_6 ", " REGISTERS_7
        "}, %128, %129, p, 1, 1, 0, 0;}"
        : SIXTEEN(d, 0), SIXTEEN(d, 1), SIXTEEN(d, 2), SIXTEEN(d, 3), SIXTEEN(d, 4), SIXTEEN(d, 5), SIXTEEN(d, 6),
          SIXTEEN(d, 7)
        : "l"(a), "l"(b), "r"((u32)adds));
}

// The same with a in registers again. COLUMNS: b lies as [16][N] float16, in panels of 64 columns, whose rows have 128
// bytes and are swizzled as above.
template <bool COLUMNS>
DEVICE void wgmma_rows(float (&d)[8][4], const u32 (&a)[4], u64 b, bool adds) {
    asm volatile(
        "{.reg .pred p; setp.ne.u32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" REGISTERS_0 ", " REGISTERS_1
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;}"
        : SIXTEEN(d, 0), SIXTEEN(d, 1)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((u32)adds), "n"((int)COLUMNS));
}

template <bool COLUMNS>
DEVICE void wgmma_rows(float (&d)[12][4], const u32 (&a)[4], u64 b, bool adds) {
    asm volatile(
        "{.reg .pred p; setp.ne.u32 p, %53, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {" REGISTERS_0 ", " REGISTERS_1 ", " REGISTERS_2
        "}, {%48, %49, %50, %51}, %52, p, 1, 1, %54;}"
        : SIXTEEN(d, 0), SIXTEEN(d, 1), SIXTEEN(d, 2)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((u32)adds), "n"((int)COLUMNS));
}

template <bool COLUMNS>
DEVICE void wgmma_rows(float (&d)[16][4], const u32 (&a)[4], u64 b, bool adds) {
    asm volatile(
        "{.reg .pred p; setp.ne.u32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" REGISTERS_0 ", " REGISTERS_1 ", " REGISTERS_2
        ", " REGISTERS_3 "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;}"
        : SIXTEEN(d, 0), SIXTEEN(d, 1), SIXTEEN(d, 2), SIXTEEN(d, 3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((u32)adds), "n"((int)COLUMNS));
}

// Descriptor of b with COLUMNS: panels of `rows` rows each.
DEVICE u64 wgmma_columns_descriptor(u32 address, int rows) {
    return (u64)((address & 0x3FFFF) >> 4) | (u64)(rows * 128 >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

#undef REGISTERS_0
#undef REGISTERS_1
#undef REGISTERS_2
#undef REGISTERS_3
#undef REGISTERS_4
#undef REGISTERS_5
#undef REGISTERS_6
#undef REGISTERS_7
#undef SIXTEEN
#undef FOUR

#else
#define HAS_WGMMA 0
#endif
