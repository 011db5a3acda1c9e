// Maps to rows and back on the GPU: map_layout.cuh's vectors, a thread each.
#include "map_layout.cuh"

#include <cuda_runtime_api.h>

namespace {

constexpr int kThreads = 256;

__global__ __launch_bounds__(kThreads) void flatten_maps(const __grid_constant__ UniadFlattenMaps a, int vectors) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (index < vectors) {
        uniad::flatten_vector(a, static_cast<int>(index));
    }
}

__global__ __launch_bounds__(kThreads) void sample_map(const __grid_constant__ UniadSampleMap a, int vectors) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (index < vectors) {
        uniad::sample_map_vector(a, static_cast<int>(index));
    }
}

template <typename Arguments>
int launch(void (*kernel)(Arguments, int), const Arguments& a, int vectors, void* stream) {
    if (vectors == 0) {
        return uniad::kUnsupported;
    }
    const auto blocks = static_cast<unsigned>((static_cast<int64_t>(vectors) + kThreads - 1) / kThreads);
    kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, vectors);
    return cudaGetLastError();
}

}  // namespace

extern "C" int uniad_flatten_maps(const UniadFlattenMaps* a, void* stream) {
    return launch(flatten_maps, *a, uniad::flatten_vectors(*a), stream);
}

extern "C" int uniad_sample_map(const UniadSampleMap* a, void* stream) {
    return launch(sample_map, *a, uniad::sample_map_vectors(*a), stream);
}
