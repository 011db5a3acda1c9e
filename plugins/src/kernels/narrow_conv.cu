// A 3 x 3 convolution with few outputs, on the GPU: narrow_conv.cuh's blocks.
#include "narrow_conv.cuh"

#include <cuda_runtime_api.h>

namespace {

__global__ __launch_bounds__(uniad::kNarrowThreads, 3) void convolve(const __grid_constant__ UniadNarrowConv a) {
    extern __shared__ __align__(128) char shared[];
    uniad::narrow_conv(uniad::DeviceBlock(shared), a, blockIdx.z, blockIdx.y * uniad::kNarrowRows,
                       blockIdx.x * uniad::kNarrowColumns);
}

}  // namespace

extern "C" int uniad_narrow_conv(const UniadNarrowConv* a, void* stream) {
    if (!uniad::narrow_fits(*a)) {
        return uniad::kUnsupported;
    }
    constexpr int kShared = uniad::kNarrowSharedBytes;
    const cudaError_t error = cudaFuncSetAttribute(convolve, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (error != cudaSuccess) {
        return error;
    }
    const dim3 blocks((a->width + uniad::kNarrowColumns - 1) / uniad::kNarrowColumns,
                      (a->height + uniad::kNarrowRows - 1) / uniad::kNarrowRows, a->batch);
    convolve<<<blocks, uniad::kNarrowThreads, kShared, static_cast<cudaStream_t>(stream)>>>(*a);
    return cudaGetLastError();
}
