// Products of many rows with what follows them, on the GPU: row_product.cuh's blocks.
#include "row_product.cuh"

#include <algorithm>

#include "launch.cuh"

namespace {

/// Blocks that fit a processor: the weights are most of a block's registers.
constexpr int resident(int channels) { return channels == 64 ? 2 : 1; }

template <int kChannels, bool kNorm>
__global__ __launch_bounds__(uniad::kProductThreads, resident(kChannels)) void multiply(
    const __grid_constant__ UniadRowProduct a) {
    extern __shared__ __align__(128) char shared[];
    uniad::row_product<kChannels, kNorm>(uniad::DeviceBlock(shared), a, blockIdx.x * uniad::kProductOutputs, blockIdx.y,
                                         gridDim.y);
}

template <int kChannels, bool kNorm>
int launch(const UniadRowProduct& a, int processors, void* stream) {
    const unsigned columns = a.outputs / uniad::kProductOutputs;
    const unsigned room = std::max(1u, processors * resident(kChannels) / columns);
    const dim3 blocks(columns, std::min(room, uniad::blocks_of(a.rows, uniad::kProductRows)));
    return uniad::launch_blocks(multiply<kChannels, kNorm>, blocks, uniad::kProductThreads,
                                uniad::product_shared_bytes(kChannels, kNorm), stream, a);
}

}  // namespace

extern "C" int uniad_product_norm_runs(int channels) {
    return uniad::product_has_norm(channels) && uniad::block_has_shared(uniad::product_shared_bytes(channels, true));
}

extern "C" int uniad_row_product(const UniadRowProduct* a, void* stream) {
    if (!uniad::product_fits(*a)) {
        return uniad::kUnsupported;
    }
    uniad::Processors gpu{};
    if (const cudaError_t error = uniad::ask_processors(gpu); error != cudaSuccess) {
        return error;
    }
    if (a->gain != nullptr) {
        return a->channels == 256 ? launch<256, true>(*a, gpu.count, stream) : launch<512, true>(*a, gpu.count, stream);
    }
    switch (a->channels) {
        case 64: return launch<64, false>(*a, gpu.count, stream);
        case 128: return launch<128, false>(*a, gpu.count, stream);
        default: return launch<256, false>(*a, gpu.count, stream);
    }
}
