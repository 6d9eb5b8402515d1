// The grids of the IQ2 and IQ3 formats: an index names a point, whose coordinates are the magnitudes of 8 or 4
// neighbouring numbers. `GridTraits` and the points, 16 bits each, are made of the table in `kernels/weights/grids.py`.
#pragma once
#include "common.cuh"

template <int F>
DEVICE const u16* points_of() {
    if constexpr (F == IQ2_XXS) return IQ2_XXS_POINTS<>;
    if constexpr (F == IQ2_XS) return IQ2_XS_POINTS<>;
    if constexpr (F == IQ2_S) return IQ2_S_POINTS<>;
    if constexpr (F == IQ3_XXS) return IQ3_XXS_POINTS<>;
    if constexpr (F == IQ3_S) return IQ3_S_POINTS<>;
}

template <int F>
struct Grid : GridTraits<F> {
    using T = GridTraits<F>;
    static constexpr int point_bytes = T::num_coordinates, index_bytes = 64 / point_bytes;  // of a row of a chunk
    static constexpr int index_bits = T::num_points == 256 ? 8 : T::num_points == 512 ? 9 : 10;

    // Magnitudes of four coordinates, a byte each, of which `digits` has four bits each.
    DEVICE static u32 four_magnitudes(u32 digits) {
        return select_bytes(T::first_magnitudes, T::last_magnitudes, digits);
    }
    DEVICE static u32 magnitude(int index, int coordinate) {
        constexpr int bits = 16 / point_bytes;
        return four_magnitudes(points_of<F>()[index] >> coordinate * bits & ((1 << bits) - 1)) & 255;
    }
    // The points' magnitudes in shared memory, `point_bytes` each.
    DEVICE static u8* in_shared() {
        __shared__ __align__(16) u8 magnitudes[T::num_points * point_bytes];
        return magnitudes;
    }
    // All threads of the block call it, before they read points.
    DEVICE static void load() {
        auto spread = [](u32 digits) {  // four of 2 bits
            return (digits & 3) | (digits & 12) << 2 | (digits & 48) << 4 | (digits & 192) << 6;
        };
        u32* to = (u32*)in_shared();
        for (int i = threadIdx.x; i < T::num_points; i += blockDim.x) {
            const u32 point = points_of<F>()[i];
            if constexpr (point_bytes == 4)
                to[i] = four_magnitudes(point);
            else
                to[2 * i] = four_magnitudes(spread(point & 255)), to[2 * i + 1] = four_magnitudes(spread(point >> 8));
        }
        __syncthreads();
    }
};
