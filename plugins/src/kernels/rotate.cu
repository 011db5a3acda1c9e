// The map that is turned, on the GPU: rotate.cuh's vectors, a thread each.
#include <climits>

#include "rotate.cuh"

#include <cuda_runtime_api.h>

namespace {

constexpr int kThreads = 256;

__global__ __launch_bounds__(kThreads) void rotate(const __grid_constant__ UniadRotate a, int vectors) {
    const unsigned index = blockIdx.x * kThreads + threadIdx.x, row = index / static_cast<unsigned>(vectors);
    if (row < static_cast<unsigned>(a.height * a.width)) {
        uniad::rotate_vector(a, vectors, static_cast<int>(row), static_cast<int>(index - row * vectors));
    }
}

}  // namespace

extern "C" int uniad_rotate(const UniadRotate* a, int type, void* stream) {
    const int vectors = uniad::rotate_vectors(*a, type);
    if (vectors == 0) {
        return uniad::kUnsupported;
    }
    const int64_t threads = static_cast<int64_t>(a->height) * a->width * vectors;
    if (threads > INT_MAX) {
        return uniad::kUnsupported;
    }
    const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
    rotate<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(*a, vectors);
    return cudaGetLastError();
}
