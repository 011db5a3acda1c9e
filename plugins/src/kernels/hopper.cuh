// Hopper's instructions that the kernels use: barriers in shared memory, bulk copies, matrix products of a warpgroup.
// Only for machine code of sm_90a: UNIAD_SM90A is set there.
#pragma once

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define UNIAD_SM90A 1

#include <cstdint>

namespace uniad {

__device__ __forceinline__ void init_barrier(unsigned barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals));
}

/// Makes the barriers' first state known to the copy engine; a barrier of the threads must follow.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ __forceinline__ void arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

/// Arrives, and lets the phase end only when so many bytes have been copied.
__device__ __forceinline__ void arrive_expecting(unsigned barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

/// Waits for the end of the phase of the given parity; of a fresh barrier, the phase of parity 1 has ended.
__device__ __forceinline__ void wait_for(unsigned barrier, unsigned parity) {
    unsigned done;
    do {
        asm volatile(
            "{\n.reg .pred done;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
            "selp.u32 %0, 1, 0, done;\n}\n"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (done == 0);
}

/// Copies to this block's shared memory; `barrier` counts the bytes.
__device__ __forceinline__ void copy_bulk(unsigned to, const void* from, unsigned bytes, unsigned barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

/// This thread's ordinary writes to shared memory come before what the tensor cores read after the next barrier.
__device__ __forceinline__ void publish_writes() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

/// A barrier of some of a block's warps, kThreads in all; 0 is __syncthreads'.
template <int kThreads>
__device__ __forceinline__ void sync_some(int barrier) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "n"(kThreads) : "memory");
}

/// Counts at such a barrier without waiting there.
template <int kThreads>
__device__ __forceinline__ void arrive_some(int barrier) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "n"(kThreads) : "memory");
}

/// Registers of a thread from here on, for all of a warpgroup.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

/// What wgmma needs to know of an operand: rows of 128 bytes (64 values of float16 along k), eight of them after each
/// other in 1024 aligned bytes, 16-byte vector v of row r at place v ^ (r % 8). 16 values further along k are 32 bytes.
__device__ __forceinline__ uint64_t describe_operand(unsigned address) {
    constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32, kIgnored = 1 << 16;
    return kSwizzle128 | kEightRows | kIgnored | (address & 0x3ffff) >> 4;
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
/// Waits until at most kLeft committed groups of products are under way.
template <int kLeft>
__device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kLeft) : "memory");
}

/// Keeps the compiler from moving uses of the sums over this place.
template <int kCount>
__device__ __forceinline__ void pin(float (&sum)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        asm volatile("" : "+f"(sum[i])::"memory");
    }
}

#define UNIAD_SUM4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define UNIAD_SUM16(i) UNIAD_SUM4(i), UNIAD_SUM4(i + 4), UNIAD_SUM4(i + 8), UNIAD_SUM4(i + 12)

/// sum = left (64 x 16) times right (136 x 16) transposed, both float16, + sum unless `fresh`. Thread t of the
/// warpgroup holds at 4 j + 2 h + e: row t / 32 * 16 + 8 h + t % 32 / 4, column 8 j + 2 (t % 4) + e.
__device__ __forceinline__ void multiply_64x136x16(float (&sum)[68], uint64_t left, uint64_t right, bool fresh) {
    asm volatile(
        "{\n.reg .pred add;\n"
        "setp.eq.u32 add, %70, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n136k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
        "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
        "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, "
        "%65, %66, %67}, %68, %69, add, 1, 1, 0, 0;\n}\n"
        : UNIAD_SUM16(0), UNIAD_SUM16(16), UNIAD_SUM16(32), UNIAD_SUM16(48), UNIAD_SUM4(64)
        : "l"(left), "l"(right), "r"(static_cast<unsigned>(fresh)));
}

#undef UNIAD_SUM16
#undef UNIAD_SUM4

}  // namespace uniad

#endif  // sm_90a
