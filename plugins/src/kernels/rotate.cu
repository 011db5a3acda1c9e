// The map that is turned, on the GPU: rotate.cuh's vectors, a thread each.
#include "rotate.cuh"

#include <cuda_runtime_api.h>

namespace {

constexpr int kThreads = 256;

__global__ __launch_bounds__(kThreads) void rotate(const __grid_constant__ UniadRotate a, int vectors) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int cell = static_cast<int>(index / vectors);
    if (cell < a.height * a.width) {
        uniad::rotate_vector(a, vectors, cell, static_cast<int>(index % vectors));
    }
}

}  // namespace

extern "C" int uniad_rotate(const UniadRotate* a, int type, void* stream) {
    const int vectors = uniad::rotate_vectors(*a, type);
    if (vectors == 0) {
        return uniad::kUnsupported;
    }
    const int64_t threads = static_cast<int64_t>(a->height) * a->width * vectors;
    const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
    rotate<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(*a, vectors);
    return cudaGetLastError();
}
