// Small kernels that tests watch launches with.
#include "../../kernels/cuda/common/common.cuh"

struct AddParams {
    float* values;  // [size]
    int size;
    float amount;
};
KERNEL probe_add(const __grid_constant__ AddParams p) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.size) p.values[i] = p.values[i] * 2.0f + p.amount;
}

// Every thread writes its number to shared memory and reads its neighbour's.
struct RotateParams {
    int* out;  // [blockDim.x]
    int shared_words;
    int pad;
};
KERNEL probe_rotate(const __grid_constant__ RotateParams p) {
    extern __shared__ int words[];
    wait_for_previous();
    int* end = words + p.shared_words - blockDim.x;
    end[threadIdx.x] = threadIdx.x;
    __syncthreads();
    p.out[threadIdx.x] = end[(threadIdx.x + SHIFT) % blockDim.x];
}

struct SpinParams {
    u64 nanoseconds;
};
KERNEL probe_spin(const __grid_constant__ SpinParams p) {
    wait_for_previous();
    u64 start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - start < p.nanoseconds);
}

struct CopyParams {
    const uint4* source;  // [size]
    uint4* target;        // [size]
    i64 size;
};
KERNEL probe_copy(const __grid_constant__ CopyParams p) {
    wait_for_previous();
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < p.size; i += (i64)gridDim.x * blockDim.x)
        p.target[i] = p.source[i];
}
