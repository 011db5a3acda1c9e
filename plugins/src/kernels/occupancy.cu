// Which instance occupies a cell, on the GPU: occupancy.cuh's blocks.
#include "occupancy.cuh"

#include <cuda_runtime_api.h>

namespace {

template <int kWidth>
__global__ __launch_bounds__(uniad::kOccupancyThreads, 1) void occupy(const __grid_constant__ UniadOccupancy a) {
    extern __shared__ __align__(128) char shared[];
    uniad::occupancy<kWidth>(uniad::DeviceBlock(shared), a, blockIdx.y, blockIdx.x, gridDim.x);
}

template <int kWidth>
int launch(const UniadOccupancy& a, cudaStream_t stream) {
    constexpr int kShared = uniad::occupancy_shared_bytes<kWidth>();
    const cudaError_t error = cudaFuncSetAttribute(occupy<kWidth>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (error != cudaSuccess) {
        return error;
    }
    const int tiles = (a.cells + uniad::kOccupancyCells - 1) / uniad::kOccupancyCells;
    const auto columns = static_cast<unsigned>(tiles < uniad::kOccupancyBlocks ? tiles : uniad::kOccupancyBlocks);
    occupy<kWidth><<<dim3(columns, static_cast<unsigned>(a.steps)), uniad::kOccupancyThreads, kShared, stream>>>(a);
    return cudaGetLastError();
}

}  // namespace

extern "C" int uniad_occupancy_runs(int width) {
    int device = 0, bytes = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
        cudaGetLastError();  // a failed query must not be taken for a later launch's failure
        return 0;
    }
    return (width == 256 && bytes >= uniad::occupancy_shared_bytes<256>()) ||
           (width == 128 && bytes >= uniad::occupancy_shared_bytes<128>());
}

extern "C" int uniad_occupancy(const UniadOccupancy* a, void* stream) {
    if (!uniad::occupancy_fits(*a)) {
        return uniad::kUnsupported;
    }
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    return a->width == 256 ? launch<256>(*a, cuda_stream) : launch<128>(*a, cuda_stream);
}
