// One token's weights in a K format: no ring in shared memory, but each lane loads the words that it unpacks into
// registers, those of a chunk as soon as the same chunk of the unit before is unpacked. That takes fewer instructions,
// which are what bounds these products. So does finding the scales of a unit but once: of the four lanes that share two
// rows each finds those of one chunk, and the others read them in shared memory.
#pragma once
#include "matmul_weights.cuh"

// The scales of a unit's rows, as `Scales::find` leaves them.
struct SharedScales {
    static constexpr int num_words = Scales<FORMAT>::num_words, at_once = num_words < 4 ? num_words : 4;
    // The lanes of a store have scales of different chunks: these are so far apart that they are on different banks,
    // and where a row has two quads those of the last two chunks have changed places.
    static constexpr int row_bytes = num_words * 4, chunk_bytes = 8 * row_bytes + (num_words > 4 ? 64 : 32);
    static_assert(!STREAMED || 4 * chunk_bytes <= STREAMED_SCALE_BYTES, "a warp's share of shared memory");
    static_assert(num_words <= 8, "two quads");

    u32 rows;  // where those of the lane's two rows are, in the first chunk

    DEVICE void load(int chunk, u32 (&word)[num_words]) const {
#pragma unroll
        for (int i = 0; i < num_words; i += at_once) load_words<at_once>(word + i, place(chunk, i));
    }
    DEVICE void store(int chunk, const u32 (&word)[num_words]) const {
#pragma unroll
        for (int i = 0; i < num_words; i += at_once) store_words<at_once>(place(chunk, i), word + i);
    }

   private:
    DEVICE u32 place(int chunk, int i) const {
        const int swapped = num_words > 4 ? 16 * (chunk >> 1) : 0;
        return rows + chunk * chunk_bytes + (4 * i ^ swapped);
    }
};

// One warp's partition of its tiles, one tile after the other, as `Weights` has it.
class StreamedWeights {
    using L = Layout<FORMAT>;
    static constexpr int CODE_BYTES = L::code_planes ? 16 : 4 * L::rest_words;  // of a lane in the first plane

    struct Unit {
        Raw<FORMAT> raw[4];  // the codes of its chunks; in the first one the scales of chunk `lane % 4`
    };
    static constexpr int DEPTH = L::unit_bytes < 1536 ? 2 : 1;  // small ones: more must be under way

    Unit ahead[DEPTH];                            // units that are loaded
    const u8* next_unit;                          // the lane's codes of the unit that is loaded next
    u32 high_offset, scale_offset, super_offset;  // from there
    int next_units;                               // units left to load in its tile
    int next_tile, tile_step, num_tiles;
    int first_unit, num_units;
    int lane = threadIdx.x % 32;
    SharedScales scales;

    DEVICE void load_codes(Raw<FORMAT>& raw, int sub, bool wanted) {
        const u8* from = next_unit + sub * L::code_bytes;
#pragma unroll
        for (int plane = 0; plane < L::code_planes; plane++)
            load_streaming_if<4>(wanted, raw.code + 4 * plane, from + plane * L::code_owners * 16);
        if constexpr (L::rest_words)
            load_streaming_if<L::rest_words>(wanted, raw.code + 4 * L::code_planes, from + L::rest_at);
        if constexpr (L::high_bytes)
            load_streaming_if<L::high_bytes / 128>(wanted, raw.high, next_unit + high_offset + sub * L::high_bytes);
    }
    DEVICE void load_scales(Raw<FORMAT>& raw, bool wanted) {
        load_streaming_if<L::scale_bytes / 32>(wanted, raw.scale, next_unit + scale_offset);
        load_streaming_if<L::super_bytes / 32>(wanted, raw.super, next_unit + super_offset);
    }
    DEVICE void begin_tile(const MatrixParams& matrix, const u8* packed) {
        next_unit =
            unit_address<FORMAT>(packed, next_tile, first_unit * L::chunks, matrix.num_units) + lane * CODE_BYTES;
    }
    DEVICE void advance(const MatrixParams& matrix, const u8* packed) {
        next_unit += 4 * L::unit_bytes;
        next_units--;
#pragma unroll 1
        while (next_units <= 0) {  // once; an `if` would become a row of predicated instructions
            next_tile += tile_step, next_units = num_units;
            begin_tile(matrix, packed);
        }
    }

   public:
    DEVICE StreamedWeights(const MatrixParams& matrix, const u8* packed, u32 scales_of_warps, int partition, int tile,
                           int tile_step, int num_tiles)
        : next_tile(tile),
          tile_step(tile_step),
          num_tiles(num_tiles),
          first_unit(partition_start(partition, matrix)),
          num_units(partition_start(partition + 1, matrix) - first_unit) {
        compute_now(lane);
        scales.rows = scales_of_warps + threadIdx.x / 32 * STREAMED_SCALE_BYTES + (lane >> 2) * SharedScales::row_bytes;
        high_offset = L::high_at + lane * (L::high_bytes / 32 - CODE_BYTES);
        scale_offset =
            L::scale_at + (lane & 3) * L::scale_bytes + (lane >> 2) * (L::scale_bytes / 8) - lane * CODE_BYTES;
        super_offset = L::super_at + (lane >> 2) * (L::super_bytes / 8) - lane * CODE_BYTES;
        compute_now(scale_offset), compute_now(super_offset);
        next_units = num_units;
        begin_tile(matrix, packed);
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            const bool wanted = next_tile < num_tiles;
            load_scales(ahead[i].raw[0], wanted);
#pragma unroll
            for (int sub = 0; sub < 4; sub++) load_codes(ahead[i].raw[sub], sub, wanted);
            advance(matrix, packed);
        }
        compute_now(scales.rows);
    }

    DEVICE void make_ready(const RowBase&, bool) {}  // the first unit is in registers

    // acc += the warp's partition of its next tile times x, whose rows begin at `x`.
    DEVICE void multiply(const MatrixParams& matrix, const u8* packed, float (&acc)[4], const RowBase& base, u32 x,
                         bool /*is_last*/) {
        x += first_unit * (L::chunks * 128);
#pragma unroll 1
        for (int left = num_units; left > 0; left -= DEPTH) {
#pragma unroll
            for (int i = 0; i < DEPTH; i++) {
                if (i >= left) break;
                multiply_unit(ahead[i], matrix, packed, acc, base, x);
                x += L::chunks * 128;
            }
        }
        if (DEPTH == 2 && num_units % 2) {  // the next tile's first unit is in the second place
            const Unit first = ahead[0];
            ahead[0] = ahead[DEPTH - 1], ahead[DEPTH - 1] = first;
        }
    }

   private:
    DEVICE void multiply_unit(Unit& unit, const MatrixParams& matrix, const u8* packed, float (&acc)[4],
                              const RowBase& base, u32 x) {
        const bool wanted = next_tile < num_tiles;
        u32 word[SharedScales::num_words];
        Scales<FORMAT>::find(unit.raw[0], base, word);
        load_scales(unit.raw[0], wanted);
        __syncwarp();  // all have read those of the unit before
        scales.store(lane & 3, word);
        __syncwarp();
#pragma unroll
        for (int sub = 0; sub < 4; sub++) {
            scales.load(sub, word);
            Fragments fragments;
            fragments.unpack(unit.raw[sub], Scales<FORMAT>(word));
            load_codes(unit.raw[sub], sub, wanted);
            fragments.multiply(acc, x + sub * 128);
        }
        advance(matrix, packed);
    }
};

template <bool>
struct OneTokenWeights {
    using type = Weights;
};
template <>
struct OneTokenWeights<true> {
    using type = StreamedWeights;
};
using GemvWeights = OneTokenWeights<STREAMED>::type;
