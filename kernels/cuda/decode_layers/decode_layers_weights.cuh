// A block's weights: copied to shared memory a layer ahead, and unpacked to registers before what they multiply is
// there.
#pragma once
#include "../common/bulk.cuh"
#include "../common/dequant.cuh"
#include "decode_layers.cuh"

// One of a block's buffers. `full` says that a layer's weights are there, `empty` that they are unpacked.
struct WeightBuffer {
    u32 units, full, empty;

    DEVICE void init(int num_warps) const { barrier_init(full, 1), barrier_init(empty, num_warps); }

    // A warp asks for the tiles first..first + count - 1 of a layer, once there is room for them.
    DEVICE void fill(const u8* packed, int format, int num_chunks, int first, int count, int layer) const {
        if (layer) barrier_wait(empty, (layer - 1) & 1);
        if (format == Q4_K)
            fill_as<Q4_K>(packed, num_chunks, first, count);
        else if (format == Q6_K)
            fill_as<Q6_K>(packed, num_chunks, first, count);
        else if (format == Q5_0)
            fill_as<Q5_0>(packed, num_chunks, first, count);
        else
            fill_as<Q8_0>(packed, num_chunks, first, count);
    }
    DEVICE void wait(int layer) const { barrier_wait(full, layer & 1); }
    DEVICE void release() const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(empty);
    }

   private:
    template <int F>
    DEVICE void fill_as(const u8* packed, int num_chunks, int first, int count) const {
        using L = Layout<F>;
        const int lane = threadIdx.x % 32, num_units = num_chunks / L::chunks, all = count * num_units;
        if (lane == 0) barrier_arrive_expecting(full, all * L::unit_bytes);
        __syncwarp();
#pragma unroll 1
        for (int i = lane; i < all; i += 32) {
            const int tile = i / num_units, unit = i - tile * num_units;
            const u8* from = unit_address<F>(packed, first + tile, unit * L::chunks, num_units);
            copy_bulk_once(units + i * L::unit_bytes, from, L::unit_bytes, full);
        }
    }
};

// A warp's partition of a tile as fragments, of COUNT chunks at most. A branch for each format: what is unpacked in one
// is ready when it ends. Without, the compiler puts the work off until after the wait that follows.
template <int COUNT>
class Fragments {
    u32 a[COUNT][4][4];

   public:
    // Chunks first..first + count - 1 of tile `tile` of those at `units`.
    DEVICE void unpack(int format, u32 units, int tile, int num_chunks, int first, int count) {
        if (format == Q5_0)
            unpack_as<Q5_0>(units, tile * num_chunks + first, count);
        else
            unpack_as<Q8_0>(units, tile * num_chunks + first, count);
    }
    // The upper or lower half of a tile's rows, of two partitions whose first chunks are `first` and `second`: those of
    // the first one as rows 0..7, those of the second as rows 8..15.
    template <int HALF>
    DEVICE void unpack_halves(int format, u32 units, int first, int second) {
        if (format == Q4_K)
            unpack_halves_as<Q4_K, HALF>(units, first, second);
        else if (format == Q6_K)
            unpack_halves_as<Q6_K, HALF>(units, first, second);
        else if (format == Q5_0)
            unpack_halves_as<Q5_0, HALF>(units, first, second);
        else
            unpack_halves_as<Q8_0, HALF>(units, first, second);
    }
    // Puts them into shared memory, and takes `count` chunks from there.
    DEVICE void put(u32 place) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int s = 0; s < 4; s++) store_words<4>(place + (i * 4 + s) * 512 + threadIdx.x % 32 * 16, a[i][s]);
    }
    DEVICE void take(u32 place, int count) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (i < count) {
#pragma unroll
                for (int s = 0; s < 4; s++) load_words<4>(a[i][s], place + (i * 4 + s) * 512 + threadIdx.x % 32 * 16);
            } else {
                clear_chunk(i);
            }
        }
    }

    // acc += their products with x; this lane gives the rows at `x` to ldmatrix.
    DEVICE void multiply(float (&acc)[4], u32 x, int count) const { multiply_some<COUNT>(acc, x, 0, count); }
    // Those of SOME chunks from `first` on, the first of which is at `x`.
    template <int SOME>
    DEVICE void multiply_some(float (&acc)[4], u32 x, int first, int count) const {
#pragma unroll
        for (int i = first; i < first + SOME; i++) {
            if (i < count) {
                u32 b[2][4];
                load_matrices(b[0], x + (i - first) * 128);
                load_matrices(b[1], x + (i - first) * 128 + 64);
#pragma unroll
                for (int s = 0; s < 4; s++)
                    mma_16x8x16(acc, a[i][s], b[s >> 1][2 * (s & 1)], b[s >> 1][2 * (s & 1) + 1]);
            }
        }
    }

   private:
    // A chunk that there is not is 0: were it not defined, its registers would be taken all the way round the loop.
    DEVICE void clear_chunk(int i) {
#pragma unroll
        for (int s = 0; s < 4; s++) a[i][s][0] = a[i][s][1] = a[i][s][2] = a[i][s][3] = 0;
    }
    template <int F>
    DEVICE static void load(Raw<F>& raw, u32 units, int chunk) {
        using L = Layout<F>;
        raw.load_shared(units + chunk / L::chunks * L::unit_bytes, chunk % L::chunks, threadIdx.x % 32);
    }
    template <int F>
    DEVICE void unpack_as(u32 units, int first, int count) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (i < count) {
                Raw<F> raw;
                load<F>(raw, units, first + i);
                const Scales<F> scales(raw, RowBase{});
#pragma unroll
                for (int s = 0; s < 4; s++) fragment_of<F>(raw, scales, s, a[i][s]);
            } else {
                clear_chunk(i);
            }
        }
    }
    template <int F, int HALF>
    DEVICE void unpack_halves_as(u32 units, int first, int second) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int part = 0; part < 2; part++) {
                Raw<F> raw;
                load<F>(raw, units, (part ? second : first) + i);
                const Scales<F> scales(raw, RowBase{});
#pragma unroll
                for (int s = 0; s < 4; s++) {
                    a[i][s][part] = pair_of<F>(raw, scales, HALF, 2 * s);
                    a[i][s][2 + part] = pair_of<F>(raw, scales, HALF, 2 * s + 1);
                }
            }
    }
};
