// Hopper's bulk copies to shared memory, and the barriers that count their bytes: the copy engine does the work, one
// thread asks for it, and nothing has to be fenced before the tensor cores read what has arrived.
#pragma once
#include "common.cuh"

DEVICE void barrier_init(u32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// To be called after the `barrier_init`s and before the block's first `__syncthreads`.
DEVICE void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void barrier_arrive_expecting(u32 barrier, int num_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(num_bytes) : "memory");
}
DEVICE void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
DEVICE void barrier_wait(u32 barrier, int phase) {
    u32 done;
    do {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(phase)
            : "memory");
    } while (!done);
}
// Whether `barrier_wait` would not wait.
DEVICE bool barrier_is_done(u32 barrier, int phase) {
    u32 done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(phase)
        : "memory");
    return done;
}

// Named barriers, which `threads` of a block reach, whole warps of them: those that arrive do not wait for the others.
DEVICE void synchronise(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
DEVICE void arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// The barriers of a ring, of its stages when they are full and then of these when they are empty: how many arrive at
// each. All threads of the block call it before anything else.
DEVICE void begin_ring(u32 barriers, int stages, int full_arrivals, int empty_arrivals) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; i++) {
            barrier_init(barriers + 8 * i, full_arrivals);
            barrier_init(barriers + 8 * (stages + i), empty_arrivals);
        }
        publish_barriers();
    }
    __syncthreads();
}

// Copies `num_bytes`, which must be a multiple of 16.
DEVICE void copy_bulk(u32 shared, const void* global, int num_bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :
                 : "r"(shared), "l"(global), "r"(num_bytes), "r"(barrier)
                 : "memory");
}
// The same of what is not read again for long: the L2 cache keeps other lines.
DEVICE void copy_bulk_once(u32 shared, const void* global, int num_bytes, u32 barrier) {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
        :
        : "r"(shared), "l"(global), "r"(num_bytes), "r"(barrier), "l"(policy)
        : "memory");
}
// Copies the box of a tensor map that begins at (column, row); what lies outside of the array comes as zeros.
DEVICE void copy_box(u32 shared, const void* tensor_map, int column, int row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        :
        : "r"(shared), "l"(tensor_map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// Stores the box that begins at (column, row); what lies outside of the array is left out. After it comes
// `cp.async.bulk.commit_group`.
DEVICE void store_box(const void* tensor_map, int column, int row, u32 shared) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];"
                 :
                 : "l"(tensor_map), "r"(column), "r"(row), "r"(shared)
                 : "memory");
}

// Four 8 x 8 matrices of float16, as the tensor core has them, to rows of 16 bytes: lane i has the address of row i.
// The rows of shared memory are the matrices' columns.
DEVICE void store_matrices_transposed(const u32 (&r)[4], u32 address) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

// A place in a ring of `stages` and how often it has been passed.
struct RingPlace {
    int stage = 0, phase = 0;
    DEVICE void advance(int stages) {
        if (++stage == stages) stage = 0, phase ^= 1;
    }
};
