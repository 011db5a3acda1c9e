// A 3 x 3 convolution with few outputs, on the GPU: narrow_conv.cuh's blocks.
#include "narrow_conv.cuh"

#include "launch.cuh"

namespace {

template <int kTiles>
__global__ __launch_bounds__(uniad::narrow_threads(kTiles)) void convolve(const __grid_constant__ UniadNarrowConv a) {
    extern __shared__ __align__(128) char shared[];
    uniad::narrow_conv<kTiles>(uniad::DeviceBlock(shared), a, blockIdx.x * kTiles);
}

template <int kTiles>
int launch(const UniadNarrowConv& a, int count, void* stream) {
    return uniad::launch_blocks(convolve<kTiles>, uniad::blocks_of(count, kTiles), uniad::narrow_threads(kTiles),
                                uniad::narrow_shared_bytes(kTiles), stream, a);
}

}  // namespace

extern "C" int uniad_narrow_conv(const UniadNarrowConv* a, void* stream) {
    if (!uniad::narrow_fits(*a)) {
        return uniad::kUnsupported;
    }
    uniad::Processors gpu{};
    if (const cudaError_t error = uniad::ask_processors(gpu); error != cudaSuccess) {
        return error;
    }
    const int count = uniad::narrow_tiles(*a).count;
    switch (uniad::narrow_tiles_of_block(count, gpu)) {
        case 1: return launch<1>(*a, count, stream);
        case 2: return launch<2>(*a, count, stream);
        default: return launch<3>(*a, count, stream);
    }
}
