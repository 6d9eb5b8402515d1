// Packed weights -> float16, as matmul_unpacked_N multiplies them: [chunks of 64 columns, rows in 128s, 64], the
// 16-byte vectors of each row swizzled: vector ^ row % 8. The very numbers that the other kernels make in registers.
#include "matmul.cuh"

struct UnpackParams {
    MatrixParams matrix;
    u8* out;
};

constexpr int WARPS = 4, STAGES = Staged<FORMAT>::bytes > 2048 ? 2 : 4;

DEVICE void store_matrices(const u32 (&r)[4], u32 address) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

// Grid: (parts of the columns, row tiles of 16 / WARPS). A warp has 16 rows and a part of their chunks.
KERNEL __launch_bounds__(32 * WARPS) matmul_unpack(const __grid_constant__ UnpackParams p) {
#if __CUDA_ARCH__ >= 900
    using L = Layout<FORMAT>;
    __shared__ __align__(128) u8 packed[WARPS][STAGES][Staged<FORMAT>::bytes];
    __shared__ __align__(128) u8 unpacked[WARPS][2048];
    const MatrixParams& matrix = p.matrix;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.y * WARPS + warp;
    const int num_chunks = matrix.num_units * L::chunks;
    const int first = (i64)blockIdx.x * num_chunks / gridDim.x, last = (i64)(blockIdx.x + 1) * num_chunks / gridDim.x;
    load_grid();
    const int read_tile = min(tile, (matrix.num_rows + 63) / 64 * 4 - 1);
    const RowBase base = row_base(matrix, 0, tile, lane);
    const u32 stages = shared_address(packed[warp]), own = shared_address(unpacked[warp]);
    auto copy = [&](int chunk, int stage) {
        if (chunk < last)
            Staged<FORMAT>::copy(stages + stage * Staged<FORMAT>::bytes,
                                 unit_address<FORMAT>(matrix.packed, read_tile, chunk, matrix.num_units),
                                 chunk % L::chunks, lane);
        copy_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES; i++) copy(first + i, i);
    wait_for_previous();
    const i64 step = (i64)gridDim.y * WARPS * 2048;
    u8* out = p.out + first * step + tile * 2048 + lane * 16;
    int stage = 0;
#pragma unroll 1
    for (int chunk = first; chunk < last; chunk++, out += step) {
        copy_wait<STAGES - 1>();
        Raw<FORMAT> raw;
        Staged<FORMAT>::load(raw, stages + stage * Staged<FORMAT>::bytes, lane);
        const Scales<FORMAT> scales(raw, base);
#pragma unroll
        for (int s = 0; s < 4; s++) {
            u32 a[4];
            fragment_of<FORMAT>(raw, scales, s, a);
            store_matrices(a, own + (lane & 15) * 128 + (((2 * s + (lane >> 4)) ^ (lane & 7)) << 4));
        }
        __syncwarp();
        copy(chunk + STAGES, stage);
        if (++stage == STAGES) stage = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) *(uint4*)(out + i * 512) = *(const uint4*)(unpacked[warp] + i * 512 + lane * 16);
        __syncwarp();
    }
#endif
}
