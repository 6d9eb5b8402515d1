// One token's weights in a format with scales, but for points of a grid: no ring in shared memory, but each lane loads
// the words that it unpacks into registers. That takes fewer instructions, which are what bounds these products. So
// does finding scales but once: of the four lanes that share two rows each finds those of one chunk of a group, and the
// others read them in shared memory.
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

    u32 rows;   // where those of the lane's two rows are, in the first chunk; of two quads at a multiple of 32
    u32 found;  // and in the chunk whose scales it finds

    DEVICE SharedScales(u32 rows, int own) : rows(rows), found(place(own, 0)) {}
    DEVICE void compute_now() { ::compute_now(rows), ::compute_now(found); }
    DEVICE void load(int chunk, u32 (&word)[num_words]) const {
#pragma unroll
        for (int i = 0; i < num_words; i += at_once) load_words<at_once>(word + i, place(chunk, i));
    }
    DEVICE void store(const u32 (&word)[num_words]) const {
#pragma unroll
        for (int i = 0; i < num_words; i += at_once) store_words<at_once>(found ^ 4 * i, word + i);
    }

   private:
    DEVICE u32 place(int chunk, int i) const {
        const int swapped = num_words > 4 ? 16 * (chunk >> 1) : 0;
        return rows + chunk * chunk_bytes + (4 * i ^ swapped);
    }
};

// One warp's partition of its tiles, one tile after the other, as `Weights` has it. The compiler counts all loads of a
// loop together, and so a group waits for those asked for last. Where registers suffice a group of chunks has two
// places, and one is loaded when the other's turn begins; else the words of a chunk are, when those before are
// unpacked.
template <int PLACES>
class StreamedWeights {
    using L = Layout<FORMAT>;
    static constexpr int CODE_BYTES = L::code_planes ? 16 : 4 * L::rest_words;  // of a lane in the first plane
    // Chunks that are loaded together: a unit, or several of one chunk, of which a partition's last may be missing.
    static constexpr int CHUNKS = L::streamed_chunks, UNITS = CHUNKS / L::chunks;
    static constexpr int CHUNK_STEP = UNITS > 1 ? 4 * L::unit_bytes : L::code_bytes;
    static constexpr int HIGH_STEP = UNITS > 1 ? CHUNK_STEP : L::high_bytes;
    static constexpr int SCALE_STEP = UNITS > 1 ? CHUNK_STEP : L::scale_bytes;

    struct Group {
        Raw<FORMAT> raw[CHUNKS];  // the codes of its chunks; in the first one the scales of chunk `lane % CHUNKS`
    };
    Group ahead[PLACES];                          // groups that are loaded
    const u8* next_unit;                          // the lane's codes of the unit that is loaded next
    u32 high_offset, scale_offset, super_offset;  // from there
    int next_units;                               // units left to load in its tile
    int next_tile, tile_step, num_tiles;
    int first_unit, num_units;
    int lane = threadIdx.x % 32, own = lane % CHUNKS;  // the chunk whose scales it finds
    SharedScales scales;

    DEVICE void load_codes(Raw<FORMAT>& raw, int sub, bool wanted) {
        const u8* from = next_unit + sub * CHUNK_STEP;
        if (UNITS > 1 && sub > 0) wanted = wanted && sub < next_units;
#pragma unroll
        for (int plane = 0; plane < L::code_planes; plane++)
            load_streaming_if<4>(wanted, raw.code + 4 * plane, from + plane * L::code_owners * 16);
        if constexpr (L::rest_words)
            load_streaming_if<L::rest_words>(wanted, raw.code + 4 * L::code_planes, from + L::rest_at);
        if constexpr (L::high_bytes)
            load_streaming_if<L::high_bytes / 128>(wanted, raw.high, next_unit + high_offset + sub * HIGH_STEP);
    }
    DEVICE void load(Group& group, bool wanted) {
        load_scales(group.raw[0], wanted);
#pragma unroll
        for (int sub = 0; sub < CHUNKS; sub++) load_codes(group.raw[sub], sub, wanted);
    }
    DEVICE void load_scales(Raw<FORMAT>& raw, bool wanted) {
        if (UNITS > 1) wanted = wanted && own < next_units;
        load_streaming_if<L::scale_bytes / 32>(wanted, raw.scale, next_unit + scale_offset);
        if constexpr (L::super_bytes > 0)
            load_streaming_if<L::super_bytes / 32>(wanted, raw.super, next_unit + super_offset);
    }
    DEVICE void begin_tile(const MatrixParams& matrix, const u8* packed) {
        next_unit =
            unit_address<FORMAT>(packed, next_tile, first_unit * L::chunks, matrix.num_units) + lane * CODE_BYTES;
    }
    DEVICE void advance(const MatrixParams& matrix, const u8* packed) {
        next_unit += UNITS * 4 * L::unit_bytes;
        next_units -= UNITS;
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
          num_units(partition_start(partition + 1, matrix) - first_unit),
          scales(scales_of_warps + threadIdx.x / 32 * STREAMED_SCALE_BYTES + (lane >> 2) * SharedScales::row_bytes,
                 own) {
        compute_now(lane);
        high_offset = L::high_at + lane * (L::high_bytes / 32 - CODE_BYTES);
        scale_offset = L::scale_at + own * SCALE_STEP + (lane >> 2) * (L::scale_bytes / 8) - lane * CODE_BYTES;
        super_offset = L::super_at + (lane >> 2) * (L::super_bytes / 8) - lane * CODE_BYTES;
        compute_now(scale_offset), compute_now(super_offset);
        next_units = num_units;
        begin_tile(matrix, packed);
        load(ahead[0], next_tile < num_tiles);
    }

    // What is loaded then: to be called once.
    DEVICE void begin(const MatrixParams& matrix, const u8* packed) {
        advance(matrix, packed);
        scales.compute_now();
    }
    DEVICE void make_ready(const Factors&, bool) {}  // the first unit is in registers
    // Has the next group come into the L2 cache while a row is normed: x, which it would have delayed, is there.
    DEVICE void prefetch_next() const {
        constexpr int LINES = (L::unit_bytes + 127) / 128;
        static_assert(LINES * UNITS <= 32, "a lane has each");
        const int unit = UNITS == 1 ? 0 : lane / LINES, line = lane - unit * LINES;
        if (next_tile < num_tiles && unit < min(UNITS, next_units) && line < LINES)
            prefetch(next_unit - lane * CODE_BYTES + unit * (4 * L::unit_bytes) + line * 128);
    }

    // Where in a row of x its partition begins.
    DEVICE u32 x_at() const { return first_unit * (L::chunks * 128); }
    // acc += the warp's partition of its next tile times x, whose rows begin at `x`.
    DEVICE void multiply(const MatrixParams& matrix, const u8* packed, float (&acc)[4], const Factors& rows, u32 x,
                         bool /*is_last*/) {
#pragma unroll 1
        for (int left = num_units; left > 0; left -= PLACES * UNITS) {
#pragma unroll
            for (int i = 0; i < PLACES; i++) {
                if (i > 0 && i * UNITS >= left) break;
                multiply_group(ahead[i], ahead[PLACES - 1 - i], matrix, packed, acc, rows, x, left - i * UNITS);
                x += CHUNKS * 128;
            }
        }
        if (PLACES == 2 && (num_units + UNITS - 1) / UNITS % 2) ahead[0] = ahead[PLACES - 1];  // the next tile's first
    }

   private:
    // Of the group the first `left` units.
    DEVICE void multiply_group(Group& group, Group& other, const MatrixParams& matrix, const u8* packed,
                               float (&acc)[4], const Factors& rows, u32 x, int left) {
        const bool wanted = next_tile < num_tiles;
        u32 word[SharedScales::num_words];
        Scales<FORMAT>::find(group.raw[0], rows, word);
        if (PLACES == 1) load_scales(group.raw[0], wanted);
        __syncwarp();  // all have read those of the unit before
        scales.store(word);
        __syncwarp();
        if (PLACES == 2) load(other, wanted), advance(matrix, packed);  // now: the compiler has waited for this group
        if (UNITS == 1 || left >= UNITS) {
#pragma unroll
            for (int sub = 0; sub < CHUNKS; sub++) multiply_chunk(group.raw[sub], sub, acc, x, wanted);
        } else {
#pragma unroll
            for (int sub = 0; sub < CHUNKS - 1; sub++) {
                if (sub < left)
                    multiply_chunk(group.raw[sub], sub, acc, x, wanted);
                else if (PLACES == 1)
                    load_codes(group.raw[sub], sub, wanted);
            }
            if (PLACES == 1) load_codes(group.raw[CHUNKS - 1], CHUNKS - 1, wanted);
        }
        if (PLACES == 1) advance(matrix, packed);
    }
    DEVICE void multiply_chunk(Raw<FORMAT>& raw, int sub, float (&acc)[4], u32 x, bool wanted) {
        u32 word[SharedScales::num_words];
        scales.load(sub, word);
        Fragments fragments;
        fragments.unpack(raw, Scales<FORMAT>(word));
        if (PLACES == 1) load_codes(raw, sub, wanted);
        fragments.multiply(acc, x + sub * 128);
    }
};

template <bool, int PLACES>
struct OneTokenWeights {
    using type = Weights;
};
template <int PLACES>
struct OneTokenWeights<true, PLACES> {
    using type = StreamedWeights<PLACES>;
};
