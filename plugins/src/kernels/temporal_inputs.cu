// What temporal self-attention reads, on the GPU: temporal_inputs.cuh's vectors, a thread each.
#include "temporal_inputs.cuh"

#include <cuda_runtime_api.h>

namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ __launch_bounds__(kThreads) void temporal_inputs(const __grid_constant__ UniadTemporalInputs a, int vectors) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (index < static_cast<int64_t>(a.cells) * vectors) {
        uniad::join_temporal<T>(a, vectors, static_cast<int>(index));
    }
}

}  // namespace

extern "C" int uniad_temporal_inputs(const UniadTemporalInputs* a, int type, void* stream) {
    const int vectors = uniad::temporal_vectors(*a, type);
    if (vectors == 0) {
        return uniad::kUnsupported;
    }
    const int64_t threads = static_cast<int64_t>(a->cells) * vectors;
    const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
    const auto kernel = type == UNIAD_FLOAT16 ? temporal_inputs<half_t> : temporal_inputs<float>;
    kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(*a, vectors);
    return cudaGetLastError();
}
