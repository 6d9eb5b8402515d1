// Rows of GGUF blocks, as in the file, -> the packed layout (layout.cuh), losslessly; and single numbers back.
//   repack_rows   one SOURCE format to one FORMAT; a thread moves the 16 numbers of a row that a fragment's lane holds
//   unpack_rows   rows of a packed matrix in float32: embeddings, and tests
#include "grid_blocks.cuh"
#include "packed_element.cuh"

#ifndef SOURCE
#define SOURCE FORMAT  // of the file's blocks; Q4_0 and Q5_0 also fit Q8_0
#endif

// Where a tensor's rows go in a packed matrix.
struct PlacementParams {
    int rows_per_expert;  // of the tensor
    int row_offset;       // where its first row goes
    int gated_rows;       // 0, or rows of a gate (and of an up projection), which alternate in eights
    int begins_with_up;   // gated_rows: the tensor begins with the up projection, not with the gate
};

struct RepackParams {
    const u8* source;     // [num_rows, row_bytes] blocks of the rows from first_row on
    MatrixParams matrix;  // zeroed: packed and base are written
    int* not_finite;      // [1] set when a number is NaN or infinite
    i64 row_bytes;
    i64 first_row;  // over all experts
    int num_rows;   // in this call
    PlacementParams placement;
};

DEVICE bool is_finite_half(u32 bits) { return (bits & 0x7C00) != 0x7C00; }

// Of 2^n or what is less than twice as much: n.
DEVICE int exponent_of_half(u32 bits) { return (int)(__float_as_uint(from_half(bits & 0x7FFF)) >> 23) - 127; }

using File = Layout<SOURCE>;

// The stored code of element i of a block, without its scale.
DEVICE u32 code_of(const u8* block, int i) {
    if constexpr (File::code_bits == 32) return word_at(block);
    if constexpr (File::code_bits == 16) return half_at(block);
    if constexpr (File::code_bits == 8) return block[File::block_codes_at + i] ^ 0x80;
    if constexpr (File::low_bits == 2) {
        u32 code = block[File::block_codes_at + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
        if constexpr (File::code_bits == 3) code |= (block[File::block_high_at + i % 32] >> (i / 32) & 1) << 2;
        return code;
    }
    if constexpr (File::scaling == SUPER_MINS) {
        const int group = i / 32, lane = i % 32;
        u32 code = block[File::block_codes_at + group / 2 * 32 + lane] >> (4 * (group & 1)) & 15;
        if constexpr (File::code_bits == 5) code |= (block[File::block_high_at + lane] >> group & 1) << 4;
        return code;
    }
    if constexpr (File::code_bits == 6) {
        const int half = i / 128, quad = i % 128 / 32, lane = i % 32;
        u32 low = block[File::block_codes_at + half * 64 + (quad & 1) * 32 + lane] >> (4 * (quad >> 1)) & 15;
        return low | (block[File::block_high_at + half * 32 + lane] >> (2 * quad) & 3) << 4;
    }
    u32 code = block[File::block_codes_at + i / 32 * 16 + i % 16] >> (i % 32 < 16 ? 0 : 4) & 15;
    if constexpr (File::code_bits == 5) code |= (word_at(block + File::block_high_at) >> i & 1) << 4;
    if constexpr (SOURCE != FORMAT) code = number_of<SOURCE>(code) + Layout<FORMAT>::zero;
    return code;
}

// 6-bit scale and minimum of group j of a Q4_K or Q5_K block, in two bytes.
DEVICE u32 k_scales(const u8* packed, int j) {
    u32 scale = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
    u32 least = j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | packed[j] >> 6 << 4;
    return scale | least << 8;
}

// Scale j of those that a block of Q3_K, IQ4_XS or Q6_K has for each 16 or 32 numbers, with 128 added.
DEVICE u32 biased_scale(const u8* scales, int j) {
    if constexpr (SOURCE == Q3_K)  // 6 bits: low nibbles of eight, then of the other eight; four times four upper bits
        return ((scales[j % 8] >> (j < 8 ? 0 : 4) & 15) | (scales[8 + j % 4] >> 2 * (j / 4) & 3) << 4) + 96;
    if constexpr (SOURCE == IQ4_XS)  // 6 bits: upper bits of all, then low nibbles
        return ((scales[2 + j / 2] >> 4 * (j % 2) & 15) | (half_at(scales) >> 2 * j & 3) << 4) + 96;
    return scales[j] ^ 0x80;
}

// The indices of a row's points and the signs of the numbers that lane 4g + t holds, `half` 0 for rows g, 1 for g + 8.
// `block` is the file's, `first` the first of its numbers that are in the chunk.
template <int F>
DEVICE void store_points(u8* codes, u8* signs, int lane, int half, const u8* block, int first) {
    using G = Grid<F>;
    const int g = lane >> 2, t = lane & 3;
    constexpr int own = G::index_bytes / 4, upper_bits = G::index_bits - 8;
    u32 upper = 0, bits = 0;
#pragma unroll
    for (int i = 0; i < G::index_bytes; i++) {
        const u32 index = point_index<F>(block, first / G::point_bytes + i);
        const int at = half * G::index_bytes + i;
        if (i / own == t) codes[at / 16 * 128 + g * 16 + at % 16] = (u8)index;
        upper |= (index >> 8) << upper_bits * i;
    }
    if (upper_bits && t == 0) *(u16*)(codes + Layout<F>::rest_at + g * 4 + half * 2) = (u16)upper;
#pragma unroll
    for (int q = 0; q < 8; q++)
#pragma unroll
        for (int e = 0; e < 2; e++) bits |= (signs_of<F>(block, first / 8 + q) >> (2 * t + e) & 1) << (q + 8 * e);
    *(u16*)(signs + lane * 4 + half * 2) = (u16)bits;
}

// The 16 codes of a row that lane 4g + t holds, `half` 0 for rows g, 1 for g + 8.
template <int F>
DEVICE void store_codes(u8* codes, u8* high, int lane, int half, const u32 (&code)[8][2]) {
    using L = Layout<F>;
    u32 words[16] = {0}, row_words[3] = {0};
    u32 bits = 0;
#pragma unroll
    for (int q = 0; q < 8; q++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const u32 c = code[q][e];
            if constexpr (L::code_bits == 32) words[2 * q + e] = c;
            if constexpr (L::code_bits == 16) words[q] |= c << (16 * e);
            if constexpr (L::code_bits == 8) words[q >> 1] |= c << (16 * (q & 1) + 8 * e);
            if constexpr (L::code_bits == 3) {
                place_three_bits(words[0], bits, c, q, e);
                continue;
            }
            if constexpr (L::code_bits == 5 || L::code_bits == 6) {
                place_code<L::code_bits>(row_words, c, q, e);
                continue;
            }
            if constexpr (L::code_bits < 8) words[low_word<F>(q)] |= place_low<F>(c, q, e);
        }
    if constexpr (L::code_bits == 5 || L::code_bits == 6)
        words[0] = row_words[0], words[1] = row_words[1], bits = row_words[2];
    constexpr int num_words = L::code_words / 2;  // of one row
#pragma unroll
    for (int w = 0; w < num_words; w++) {
        const int at = half * num_words + w;
        *(u32*)(codes + code_word_at<F>(at, lane)) = words[w];
    }
    if constexpr (L::high_bytes == 128) *(u16*)(high + lane * 4 + half * 2) = (u16)bits;
    if constexpr (L::high_bytes == 256) *(u32*)(high + lane * 8 + half * 4) = bits;
}

KERNEL __launch_bounds__(256) repack_rows(const __grid_constant__ RepackParams p) {
    wait_for_previous();
    using L = Layout<FORMAT>;
    const i64 index = (i64)blockIdx.x * 256 + threadIdx.x;
    const MatrixParams& matrix = p.matrix;
    const PlacementParams& placement = p.placement;
    const int t = index & 3, chunk = (index >> 2) % matrix.num_chunks;
    const i64 row_here = (index >> 2) / matrix.num_chunks;
    if (row_here >= p.num_rows) return;
    const i64 row = p.first_row + row_here;
    const int expert = row / placement.rows_per_expert;
    int to = row % placement.rows_per_expert;
    if (placement.gated_rows) {
        const int is_up = placement.begins_with_up + to / placement.gated_rows;
        to %= placement.gated_rows;
        to = to / 8 * 16 + 8 * is_up + to % 8;
    }
    to += placement.row_offset;
    const int tile = to / 16, half = to % 16 / 8, g = to % 8, lane = 4 * g + t, sub = chunk % L::chunks;
    u8* unit = matrix.packed + expert * matrix.expert_bytes +
               (((i64)(tile >> 2) * matrix.num_units + chunk / L::chunks) * 4 + (tile & 3)) * L::unit_bytes;
    const u8* blocks = p.source + row_here * p.row_bytes;
    auto block_of = [&](int k) { return blocks + (i64)(k / File::block_elements) * File::block_bytes; };

    bool finite = true;
    if constexpr (L::has_grid) {
        store_points<FORMAT>(unit + sub * L::code_bytes, unit + L::high_at + sub * L::high_bytes, lane, half,
                             block_of(chunk * 64), chunk % 4 * 64);
    } else {
        u32 code[8][2];
#pragma unroll
        for (int q = 0; q < 8; q++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int k = chunk * 64 + 8 * q + 2 * t + e;
                const u32 c = k < matrix.width ? code_of(block_of(k), k % File::block_elements) : 0;
                if constexpr (L::codes == FLOAT32) finite &= (c & 0x7F800000) != 0x7F800000;
                if constexpr (L::codes == FLOAT16) finite &= is_finite_half(c);
                if constexpr (L::codes == BFLOAT16) finite &= (c & 0x7F80) != 0x7F80;
                code[q][e] = c;
            }
        store_codes<FORMAT>(unit + sub * L::code_bytes, unit + L::high_at + sub * L::high_bytes, lane, half, code);
    }
    if constexpr (L::scale_bytes) {
        if (t == 0) {
            u8* scales = unit + L::scale_at + sub * L::scale_bytes;
#pragma unroll
            for (int group = 0; group < 2; group++) {
                const int k = chunk * 64 + 32 * group;
                if (k >= matrix.width) continue;
                const u8* from = block_of(k) + File::block_scales_at;
                const int at = 2 * group + half;
                if constexpr (L::scaling == SCALE) {
                    ((u16*)scales)[g * 4 + at] = half_at(from);
                    finite &= is_finite_half(half_at(from));
                }
                if constexpr (L::scaling == SCALE_MIN) {
                    ((u32*)scales)[g * 4 + at] = word_at(from);
                    finite &= is_finite_half(half_at(from)) && is_finite_half(half_at(from + 2));
                }
                if constexpr (L::scaling == SUPER_MINS) ((u16*)scales)[g * 4 + at] = k_scales(from, k % 256 / 32);
                const int sixteenth = k % 256 / 16;           // the first of two
                if constexpr (L::scaling == SUPER_MINS_16) {  // of each row four scales, then four minima
                    const u32 pair = from[sixteenth] | (u32)from[sixteenth + 1] << 8;
                    u8* nibbles = scales + g * 8 + 4 * half + group;
                    nibbles[0] = (pair & 15) | (pair >> 8 & 15) << 4, nibbles[2] = (pair >> 4 & 15) | (pair >> 12) << 4;
                }
                if constexpr (L::scaling == SUPER_SCALES) {
                    scales[g * 8 + 4 * group + half] = biased_scale(from, sixteenth);
                    scales[g * 8 + 4 * group + 2 + half] = biased_scale(from, sixteenth + 1);
                }
                if constexpr (L::scaling == SUPER_SCALES_32) scales[g * 4 + at] = biased_scale(from, sixteenth / 2);
                if constexpr (L::scaling == ODD_SCALES)
                    scales[g * 4 + 2 * half + group] = nibble_scale<SOURCE>(block_of(k), sixteenth) |
                                                       nibble_scale<SOURCE>(block_of(k), sixteenth + 1) << 4;
                if constexpr (L::scaling == EXPONENT) {
                    scales[g * 4 + at] = from[0];
                    atomicMax(matrix.base + (i64)expert * matrix.num_rows + to, (int)from[0]);
                    finite &= from[0] < 253;  // 12 * 2^(253 - 128) is beyond float32
                }
            }
            if (L::is_k && sub == 0) {
                const u8* from = block_of(chunk * 64) + File::block_super_at;
                if constexpr (L::super_bytes == 32) {
                    ((u16*)(unit + L::super_at))[g * 2 + half] = half_at(from);
                    finite &= is_finite_half(half_at(from));
                } else {
                    ((u32*)(unit + L::super_at))[g * 2 + half] = word_at(from) ^ 0x80000000u;  // scale, -minimum
                    finite &= is_finite_half(half_at(from)) && is_finite_half(half_at(from + 2));
                }
                if constexpr (L::scaling == SUPER_MINS_16) {  // minima may be 2^22 times as large: see `relative_super`
                    const int exponent = max(exponent_of_half(half_at(from)), exponent_of_half(half_at(from + 2)) - 22);
                    atomicMax(matrix.base + (i64)expert * matrix.num_rows + to,
                              RELATIVE_BASE + max(exponent, LEAST_EXPONENT));
                }
            }
        }
    }
    if (!finite) *p.not_finite = 1;
}

struct UnpackParams {
    const u8* packed;
    const int* rows;  // [num_rows] rows of the matrix, clamped to those it has: -1 is padding; null: from 0 on
    float* out;       // [num_rows, width]
    int matrix_rows, width, num_units;
    int adds;     // to what `out` holds
    float scale;  // of the numbers
};

// Grid: rows, pairs of numbers of a row. A thread has a pair: a single token's row is waited for, and takes as long as
// one thread does.
KERNEL __launch_bounds__(128) unpack_rows(const __grid_constant__ UnpackParams p) {
    wait_for_previous();
    const int row = blockIdx.x, k = 2 * (blockIdx.y * 128 + threadIdx.x);
    if (k >= p.width) return;
    const int source = min(max(p.rows ? p.rows[row] : row, 0), p.matrix_rows - 1);
    float2 pair;
    pair.x = __fmul_rn(packed_element<FORMAT>(p.packed, source, k, p.num_units), p.scale);
    pair.y = __fmul_rn(packed_element<FORMAT>(p.packed, source, k + 1, p.num_units), p.scale);
    float2* const out = (float2*)(p.out + (i64)row * p.width + k);
    if (p.adds) pair = {__fadd_rn(out->x, pair.x), __fadd_rn(out->y, pair.y)};
    *out = pair;
}
