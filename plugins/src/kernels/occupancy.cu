// Which instance occupies a cell, on the GPU: occupancy.cuh's blocks.
#include "occupancy.cuh"

#include <algorithm>

#include "launch.cuh"

namespace {

template <int kWidth>
__global__ __launch_bounds__(uniad::kOccupancyThreads, 1) void occupy(const __grid_constant__ UniadOccupancy a) {
    extern __shared__ __align__(128) char shared[];
    uniad::occupancy<kWidth>(uniad::DeviceBlock(shared), a, blockIdx.y, blockIdx.x, gridDim.x);
}

template <int kWidth>
int launch(const UniadOccupancy& a, void* stream) {
    constexpr int kShared = uniad::occupancy_shared_bytes<kWidth>();
    const unsigned tiles = uniad::blocks_of(a.cells, uniad::kOccupancyCells);
    const dim3 blocks(std::min<unsigned>(tiles, uniad::kOccupancyBlocks), static_cast<unsigned>(a.steps));
    return uniad::launch_blocks(occupy<kWidth>, blocks, uniad::kOccupancyThreads, kShared, stream, a);
}

}  // namespace

extern "C" int uniad_occupancy_runs(int width) {
    return (width == 256 && uniad::block_has_shared(uniad::occupancy_shared_bytes<256>())) ||
           (width == 128 && uniad::block_has_shared(uniad::occupancy_shared_bytes<128>()));
}

extern "C" int uniad_occupancy(const UniadOccupancy* a, void* stream) {
    if (!uniad::occupancy_fits(*a)) {
        return uniad::kUnsupported;
    }
    return a->width == 256 ? launch<256>(*a, stream) : launch<128>(*a, stream);
}
