// Rows of a table in its storage format -> float32, bit for bit as the reference: what it rounds twice is rounded
// twice here, so no multiply-add; scales may be subnormal. Compiled with FORMAT = the name of a ggml type.
#include "common.cuh"

DEVICE float half_at(const u8* bytes) { return from_half(*(const u16*)bytes); }
DEVICE int nibble(const u8* packed, int i, int half) {  // low nibbles are the first `half` numbers
    return i < half ? packed[i] & 15 : packed[i - half] >> 4;
}
DEVICE int bit(const u8* bits, int i) { return bits[i / 8] >> (i % 8) & 1; }
DEVICE float scaled(int number, float scale) { return __fmul_rn((float)number, scale); }

// Each format: numbers and bytes of a block, and number i of one. Blocks are ggml's (ggml-common.h).
struct F32 {
    static constexpr int NUMBERS = 1, BYTES = 4;
    static DEVICE float number(const u8* block, int) { return *(const float*)block; }
};
struct F16 {
    static constexpr int NUMBERS = 1, BYTES = 2;
    static DEVICE float number(const u8* block, int) { return half_at(block); }
};
struct BF16 {
    static constexpr int NUMBERS = 1, BYTES = 2;
    static DEVICE float number(const u8* block, int) { return __uint_as_float((u32) * (const u16*)block << 16); }
};
struct Q4_0 {
    static constexpr int NUMBERS = 32, BYTES = 18;
    static DEVICE float number(const u8* block, int i) {
        return scaled(nibble(block + 2, i, 16) - 8, half_at(block));
    }
};
struct Q4_1 {
    static constexpr int NUMBERS = 32, BYTES = 20;
    static DEVICE float number(const u8* block, int i) {
        return __fadd_rn(scaled(nibble(block + 4, i, 16), half_at(block)), half_at(block + 2));
    }
};
struct Q5_0 {
    static constexpr int NUMBERS = 32, BYTES = 22;
    static DEVICE float number(const u8* block, int i) {
        return scaled((nibble(block + 6, i, 16) | bit(block + 2, i) << 4) - 16, half_at(block));
    }
};
struct Q5_1 {
    static constexpr int NUMBERS = 32, BYTES = 24;
    static DEVICE float number(const u8* block, int i) {
        const int code = nibble(block + 8, i, 16) | bit(block + 4, i) << 4;
        return __fadd_rn(scaled(code, half_at(block)), half_at(block + 2));
    }
};
struct Q8_0 {
    static constexpr int NUMBERS = 32, BYTES = 34;
    static DEVICE float number(const u8* block, int i) { return scaled((i8)block[2 + i], half_at(block)); }
};

// Scale and minimum of group g of a Q4_K or Q5_K block: two halves, and eight pairs of 6 bits in 12 bytes.
DEVICE float from_k_group(const u8* block, int g, int code) {
    const u8* packed = block + 4;
    const int low = g % 4;
    const int scale = g < 4 ? packed[low] & 63 : (packed[8 + low] & 15) | packed[low] >> 6 << 4;
    const int least = g < 4 ? packed[4 + low] & 63 : packed[8 + low] >> 4 | packed[4 + low] >> 6 << 4;
    return __fsub_rn(scaled(code, scaled(scale, half_at(block))), scaled(least, half_at(block + 2)));
}
struct Q4_K {
    static constexpr int NUMBERS = 256, BYTES = 144;
    static DEVICE float number(const u8* block, int i) {
        return from_k_group(block, i / 32, nibble(block + 16 + i / 64 * 32, i % 64, 32));
    }
};
struct Q5_K {
    static constexpr int NUMBERS = 256, BYTES = 176;
    static DEVICE float number(const u8* block, int i) {
        const int high = block[16 + i % 32] >> (i / 32) & 1;
        return from_k_group(block, i / 32, nibble(block + 48 + i / 64 * 32, i % 64, 32) | high << 4);
    }
};
struct Q6_K {
    static constexpr int NUMBERS = 256, BYTES = 210;
    static DEVICE float number(const u8* block, int i) {
        const int half = i / 128, quad = i / 32 % 4, lane = i % 32;
        const int low = block[half * 64 + quad % 2 * 32 + lane] >> (quad / 2 * 4) & 15;
        const int high = block[128 + half * 32 + lane] >> (2 * quad) & 3;
        return scaled((low | high << 4) - 32, scaled((i8)block[192 + i / 16], half_at(block + 208)));
    }
};
struct MXFP4 {
    static constexpr int NUMBERS = 32, BYTES = 17;
    static DEVICE float number(const u8* block, int i) {
        const u32 exponent = block[0];  // of twice the scale: the numbers below are doubled
        const u32 scale = exponent < 2 ? 0x00200000u << exponent : exponent - 1 << 23;
        const int code = nibble(block + 1, i, 16), magnitude = 0xC8643210u >> (4 * (code & 7)) & 15;
        return scaled(code & 8 ? -magnitude : magnitude, __uint_as_float(scale));
    }
};

constexpr int THREADS = 256;
constexpr int NUMBERS_PER_THREAD = 4;

struct Params {
    const u8* table;  // [num_rows, width / FORMAT::NUMBERS, FORMAT::BYTES]
    const int* ids;   // [num_ids] rows of the table; what is none is read as one that is: padding, or no token
    float* out;       // [num_ids, width]
    int num_ids;
    int num_rows;
    int width;
    int adds;  // to what `out` holds
};

// grid (ids, pieces of the width)
KERNEL __launch_bounds__(THREADS) embedding_rows(const __grid_constant__ Params p) {
    let_next_start();
    wait_for_previous();
    const int row = min(max(p.ids[blockIdx.x], 0), p.num_rows - 1);
    const u8* blocks = p.table + (i64)row * (p.width / FORMAT::NUMBERS) * FORMAT::BYTES;
    float* out = p.out + (i64)blockIdx.x * p.width;
    const int start = blockIdx.y * (THREADS * NUMBERS_PER_THREAD) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < NUMBERS_PER_THREAD; i++) {
        const int column = start + i * THREADS;
        if (column >= p.width) break;
        const float number = FORMAT::number(blocks + (i64)(column / FORMAT::NUMBERS) * FORMAT::BYTES,
                                            column % FORMAT::NUMBERS);
        out[column] = p.adds ? __fadd_rn(out[column], number) : number;
    }
}
