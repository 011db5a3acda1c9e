// Masks to lane maps on the GPU: the teams of merge_masks.cuh, and the three kernels one after another.
#include "merge_masks.cuh"

#include "launch.cuh"

namespace {

using uniad::kWarp;

constexpr int kThreads = 256;  // of a block of `pack` and `draw`
constexpr unsigned kAll = 0xffffffffu;

template <typename T>
struct OwnRegister {
    T value;
    __device__ __forceinline__ T& operator[](int) { return value; }
};

struct Warp {
    template <typename T>
    using Own = OwnRegister<T>;
    int lane;

    template <typename F>
    __device__ __forceinline__ void alone(const F& f) {
        f(lane);
    }
    template <typename F>
    __device__ __forceinline__ unsigned ballot(const F& f) {
        return __ballot_sync(kAll, f(lane));
    }
    __device__ __forceinline__ float tree_sum(Own<float>& own) {
        float sum = own.value;
#pragma unroll
        for (int apart = kWarp / 2; apart > 0; apart /= 2) {
            sum += __shfl_xor_sync(kAll, sum, apart);
        }
        return sum;
    }
};

/// The block of `decide`.
struct Block {
    template <typename T>
    using Own = OwnRegister<T>;
    static constexpr int kWarps = uniad::kDecideThreads / kWarp;
    static_assert(kWarps <= kWarp, "one warp adds up the warps' sums");
    int (*sums)[kWarps];  // shared memory, used by turns: one barrier a sum is enough
    int thread, turn = 0;

    template <typename F>
    __device__ __forceinline__ void alone(const F& f) {
        f(thread);
    }
    template <typename F>
    __device__ __forceinline__ void together(const F& f) {
        f(thread);
        __syncthreads();
    }
    template <typename F>
    __device__ __forceinline__ int sum(const F& f) {
        const int lane = thread % kWarp, of_warp = __reduce_add_sync(kAll, f(thread));
        turn ^= 1;
        if (lane == 0) {
            sums[turn][thread / kWarp] = of_warp;
        }
        __syncthreads();
        return __reduce_add_sync(kAll, lane < kWarps ? sums[turn][lane] : 0);
    }
};

__global__ __launch_bounds__(kThreads) void pack(const __grid_constant__ UniadMergeMasks a) {
    const int index = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
    const int chunks = uniad::MergeLayout::chunks_of(a.pixels);
    if (index < a.count * chunks) {
        Warp warp{static_cast<int>(threadIdx.x % kWarp)};
        uniad::pack_masks(a, warp, index / chunks, index % chunks);
    }
}

template <int Vectors>
__global__ __launch_bounds__(uniad::kDecideThreads) void decide(const __grid_constant__ UniadMergeMasks a) {
    __shared__ uniad::DecideShared shared;
    __shared__ int sums[2][Block::kWarps];
    Block block{sums, static_cast<int>(threadIdx.x)};
    uniad::decide_masks<Vectors>(a, block, shared);
}

__global__ __launch_bounds__(kThreads) void draw(const __grid_constant__ UniadMergeMasks a) {
    const int index = blockIdx.x * kThreads + threadIdx.x;
    uniad::draw_masks(a, index / kWarp, index % kWarp, blockIdx.y);
}

struct OnDevice {
    const UniadMergeMasks& a;
    cudaStream_t stream;

    int pack(int warps) const {
        ::pack<<<uniad::blocks_of(warps * kWarp, kThreads), kThreads, 0, stream>>>(a);
        return cudaGetLastError();
    }
    template <int Vectors>
    int decide() const {
        ::decide<Vectors><<<1, uniad::kDecideThreads, 0, stream>>>(a);
        return cudaGetLastError();
    }
    int draw(int vectors, int classes) const {
        ::draw<<<dim3(uniad::blocks_of(vectors * kWarp, kThreads), classes), kThreads, 0, stream>>>(a);
        return cudaGetLastError();
    }
};

}  // namespace

extern "C" int uniad_merge_masks(const UniadMergeMasks* a, void* stream) {
    return uniad::run_merge_masks(*a, OnDevice{*a, static_cast<cudaStream_t>(stream)});
}

extern "C" size_t uniad_merge_masks_workspace(int count, int pixels, int classes) {
    return uniad::merge_masks_workspace(count, pixels, classes);
}
