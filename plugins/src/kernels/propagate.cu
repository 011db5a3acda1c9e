// Reference points of the last frame in this frame's axes, on the GPU: a track a thread.
#include "propagate.cuh"

#include <cuda_runtime_api.h>

namespace {

constexpr int kThreads = 64;

__global__ __launch_bounds__(kThreads) void propagate(const __grid_constant__ UniadPropagate a) {
    const int track = blockIdx.x * kThreads + threadIdx.x;
    if (track < a.tracks) {
        uniad::propagate_point(a, track);
    }
}

}  // namespace

extern "C" int uniad_propagate(const UniadPropagate* a, void* stream) {
    if (a->tracks <= 0) {
        return uniad::kUnsupported;
    }
    propagate<<<(a->tracks + kThreads - 1) / kThreads, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(*a);
    return cudaGetLastError();
}
