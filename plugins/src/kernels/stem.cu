// The start of a residual network, on the GPU: stem.cuh's blocks.
#include "stem.cuh"

#include <algorithm>

#include "launch.cuh"

namespace {

constexpr int kResident = 2;  // blocks of a processor: one multiplies while the other pools

__global__ __launch_bounds__(uniad::kStemThreads, kResident) void start(const __grid_constant__ UniadStem a) {
    extern __shared__ __align__(128) char shared[];
    uniad::stem(uniad::DeviceBlock(shared), a, blockIdx.x, gridDim.x);
}

}  // namespace

extern "C" int uniad_stem(const UniadStem* a, void* stream) {
    if (!uniad::stem_fits(*a)) {
        return uniad::kUnsupported;
    }
    int device = 0, processors = 0;
    cudaError_t error = cudaGetDevice(&device);
    error = error == cudaSuccess ? cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) : error;
    if (error != cudaSuccess) {
        return error;
    }
    const int blocks = std::min(uniad::StemTiles(*a).count, processors * kResident);
    return uniad::launch_blocks(start, blocks, uniad::kStemThreads, uniad::kStemSharedBytes, stream, *a);
}
