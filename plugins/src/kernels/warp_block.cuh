// What a block of threads does together. Kernels written against this interface run on the host too, where
// tests/host_block.h stands for it: their layouts of fragments can be tested without a GPU.
//
// Offsets are bytes from the start of the block's shared memory. Fragments are those of mma.m16n8k16 (PTX ISA): with
// g = lane / 4 and t = lane % 4, sum[0..1] is row g, columns 2t and 2t + 1, and sum[2..3] row g + 8.
#pragma once

#include "host_device.cuh"

namespace uniad {

/// Two floats as the two halves of a register, the first in the low one.
UNIAD_HD unsigned pack_halves(float low, float high) {
#if defined(__CUDA_ARCH__)
    const __half2 both = __floats2half2_rn(low, high);  // one instruction, where two conversions and a permutation are three
#else
    const half_t both[2] = {from_float<half_t>(low), from_float<half_t>(high)};
#endif
    unsigned bits;
    std::memcpy(&bits, &both, sizeof(bits));
    return bits;
}

constexpr float kLog2E = 1.4426950408889634f;

/// 2^x to about 22 bits; results that would be denormal are 0.
UNIAD_HD float fast_exp2(float x) {
#if defined(__CUDA_ARCH__)
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(out) : "f"(x));
    return out;
#else
    return exp2f(x);
#endif
}

/// 1 / (1 + exp(-x)) to about 22 bits, by two instructions of the special function unit instead of some sixty others.
UNIAD_HD float fast_sigmoid(float x) {
#if defined(__CUDA_ARCH__)
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(out) : "f"(1.0f + fast_exp2(-kLog2E * x)));
    return out;
#else
    return 1.0f / (1.0f + exp2f(-kLog2E * x));
#endif
}

/// Two neighbouring halves, aligned to 4 bytes, as a register.
UNIAD_HD unsigned load_pair(const half_t* from) {
    unsigned bits;
    std::memcpy(&bits, from, sizeof(bits));
    return bits;
}

/// Where vector (16 bytes) `vector` of row `row` lies in a tile whose rows have kVectors of them, a multiple of 8, or 4 or
/// 2: the eight rows that one load of matrices reads are in different banks.
template <int kVectors>
UNIAD_HD unsigned tile_place(int row, int vector) {
    static_assert(kVectors % 8 == 0 || kVectors == 4 || kVectors == 2, "128 bytes hold whole rows, or are part of one");
    constexpr int kRows = kVectors < 8 ? 8 / kVectors : 1, kTurns = 8 / kRows;  // rows in 128 bytes
    return static_cast<unsigned>(row * kVectors + (vector ^ (row / kRows & (kTurns - 1)))) * 16;
}

// Rows and vectors at which a lane points for load(), relative to the 16 x 16 values that it loads: of a left operand
// (rows x depth), of a right operand stored as (columns, depth), and for load_transposed() of one stored as
// (depth, columns). The four registers are then a[0..3], or b0 and b1 of the first eight columns and of the second.
UNIAD_HD int left_row(int lane) { return lane / 8 % 2 * 8 + lane % 8; }
UNIAD_HD int left_vector(int lane) { return lane / 16; }
UNIAD_HD int right_row(int lane) { return lane / 16 * 8 + lane % 8; }
UNIAD_HD int right_vector(int lane) { return lane / 8 % 2; }

/// kRows rows of kVectors vectors from device memory into a tile, by all `threads` of a block: rows `start` and up,
/// `stride` bytes apart, zeros from row `count` on. The copies are not committed.
template <int kRows, int kVectors, typename Block>
UNIAD_DEVICE void copy_tile(const Block& block, int threads, unsigned to, const void* rows, int start, int count,
                            int stride = kVectors * 16) {
    for (int i = block.thread(); i < kRows * kVectors; i += threads) {
        const int row = i / kVectors, vector = i % kVectors;
        const bool real = start + row < count;
        const char* from = static_cast<const char*>(rows) + static_cast<int64_t>(real ? start + row : 0) * stride;
        block.copy(to + tile_place<kVectors>(row, vector), from + vector * 16, real);
    }
}

/// Tiles of kRows x kColumns cells that cover a number of maps, map by map and row by row.
template <int kRows, int kColumns>
struct MapTiles {
    int across, of_map, count;

    UNIAD_HD MapTiles(int maps, int rows, int columns)
        : across((columns + kColumns - 1) / kColumns), of_map((rows + kRows - 1) / kRows * across), count(of_map * maps) {}
    UNIAD_HD int map(int tile) const { return tile / of_map; }
    /// Where in its map a tile begins.
    UNIAD_HD int row(int tile) const { return tile % of_map / across * kRows; }
    UNIAD_HD int column(int tile) const { return tile % of_map % across * kColumns; }
};

/// The 16 numbers of a lane that pack_expand_weight (trtllm/plugin_weights.py) puts together for each of kDepths depths:
/// right operands of 32 columns, two registers for each eight. `packed` is where the warp's begin.
template <int kDepths>
UNIAD_DEVICE void load_operands(unsigned (&operands)[kDepths][8], const half_t* packed, int lane) {
#pragma unroll
    for (int depth = 0; depth < kDepths; ++depth) {
        const auto both = load<half_t, 16>(packed + (depth * 32 + lane) * 16);
        std::memcpy(operands[depth], &both, sizeof(both));
    }
}

#if defined(__CUDACC__)

/// On the GPU.
struct DeviceBlock {
    unsigned base;  // of the dynamic shared memory
    char* memory;

    __device__ __forceinline__ explicit DeviceBlock(char* shared)
        : base(static_cast<unsigned>(__cvta_generic_to_shared(shared))), memory(shared) {}

    __device__ __forceinline__ int thread() const { return threadIdx.x; }
    /// Shared memory for ordinary reads and writes.
    template <typename T>
    __device__ __forceinline__ T* shared(unsigned offset) const {
        return reinterpret_cast<T*>(memory + offset);
    }
    __device__ __forceinline__ void sync() const { __syncthreads(); }

    /// 16 bytes to shared memory, asynchronously; zeros where not `real`, when nothing is read.
    __device__ __forceinline__ void copy(unsigned to, const void* from, bool real) const {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(base + to), "l"(from), "r"(real ? 16 : 0)
                     : "memory");
    }
    /// Ends a group of copies.
    __device__ __forceinline__ void commit() const { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
    /// Waits for this thread's groups but the newest kLeft.
    template <int kLeft>
    __device__ __forceinline__ void wait() const {
        asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
    }

    __device__ __forceinline__ void load(unsigned (&out)[4], unsigned from) const {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(base + from)
                     : "memory");
    }
    __device__ __forceinline__ void load_transposed(unsigned (&out)[4], unsigned from) const {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(base + from)
                     : "memory");
    }
    /// sum += a b of a warp.
    __device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) const {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
    /// Bit i says whether lane i of the warp has a `flag`.
    __device__ __forceinline__ unsigned ballot(bool flag) const { return __ballot_sync(0xffffffffu, flag); }
    /// What the lane whose number differs in `mask` holds.
    __device__ __forceinline__ float swap(float x, int mask) const { return __shfl_xor_sync(0xffffffffu, x, mask); }
};

#endif

}  // namespace uniad
