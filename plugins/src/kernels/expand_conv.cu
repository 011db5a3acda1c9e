// The end of a residual network's block on the GPU: expand_conv.cuh's blocks.
#include "expand_conv.cuh"

#include <algorithm>

#include "launch.cuh"

namespace {

/// Blocks that fit a processor: the weights are most of a block's registers.
constexpr int resident(int channels) { return channels == 64 ? 2 : 1; }

template <int kChannels>
__global__ __launch_bounds__(uniad::kExpandThreads, resident(kChannels)) void expand(
    const __grid_constant__ UniadExpandConv a) {
    extern __shared__ __align__(128) char shared[];
    uniad::expand_conv<kChannels>(uniad::DeviceBlock(shared), a, blockIdx.x * uniad::kExpandOutputs, blockIdx.y, gridDim.y);
}

template <int kChannels>
int launch(const UniadExpandConv& a, int processors, void* stream) {
    const unsigned columns = a.outputs / uniad::kExpandOutputs;
    const unsigned room = std::max(1u, processors * resident(kChannels) / columns);
    const dim3 blocks(columns, std::min(room, uniad::blocks_of(a.rows, uniad::kExpandRows)));
    return uniad::launch_blocks(expand<kChannels>, blocks, uniad::kExpandThreads, uniad::expand_shared_bytes(kChannels),
                                stream, a);
}

}  // namespace

extern "C" int uniad_expand_conv(const UniadExpandConv* a, void* stream) {
    if (!uniad::expand_fits(*a)) {
        return uniad::kUnsupported;
    }
    uniad::Processors gpu{};
    if (const cudaError_t error = uniad::ask_processors(gpu); error != cudaSuccess) {
        return error;
    }
    switch (a->channels) {
        case 64: return launch<64>(*a, gpu.count, stream);
        case 128: return launch<128>(*a, gpu.count, stream);
        default: return launch<256>(*a, gpu.count, stream);
    }
}
