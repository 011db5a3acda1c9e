// A 3 x 3 convolution with few outputs, on the GPU: narrow_conv.cuh's blocks.
#include "narrow_conv.cuh"

#include "launch.cuh"

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
    const dim3 blocks(uniad::blocks_of(a->width, uniad::kNarrowColumns), uniad::blocks_of(a->height, uniad::kNarrowRows),
                      a->batch);
    return uniad::launch_blocks(convolve, blocks, uniad::kNarrowThreads, uniad::kNarrowSharedBytes, stream, *a);
}
