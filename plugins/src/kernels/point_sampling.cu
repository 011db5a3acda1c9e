// The pillars' anchors in the cameras' images, on the GPU: an anchor in a camera a thread.
#include "point_sampling.cuh"

#include <cuda_runtime_api.h>

namespace {

constexpr int kThreads = 256;

__global__ __launch_bounds__(kThreads) void sample(const __grid_constant__ UniadPointSampling a) {
    const int index = blockIdx.x * kThreads + threadIdx.x;
    if (index < a.cameras * a.cells * a.anchors) {
        uniad::sample_point(a, index);
    }
}

}  // namespace

extern "C" int uniad_point_sampling(const UniadPointSampling* a, void* stream) {
    const int count = a->cameras * a->cells * a->anchors;
    if (count <= 0) {
        return uniad::kUnsupported;
    }
    sample<<<(count + kThreads - 1) / kThreads, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(*a);
    return cudaGetLastError();
}
