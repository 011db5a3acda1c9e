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
    uniad::Processors gpu{};
    if (const cudaError_t error = uniad::ask_processors(gpu); error != cudaSuccess) {
        return error;
    }
    const int blocks = std::min(uniad::stem_tiles(*a).count, gpu.count * kResident);
    return uniad::launch_blocks(start, blocks, uniad::kStemThreads, uniad::kStemSharedBytes, stream, *a);
}
