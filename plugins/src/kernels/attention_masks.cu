// The map head's masks on the GPU: attention_masks.cuh's blocks.
#include "attention_masks.cuh"

#include <algorithm>

#include "launch.cuh"

namespace {

template <int kWidth>
__global__ __launch_bounds__(uniad::kMaskWarps * 32) void masks(const __grid_constant__ UniadAttentionMasks a, int warps) {
    extern __shared__ __align__(128) char shared[];
    uniad::attention_masks<kWidth>(uniad::DeviceBlock(shared), a, warps, blockIdx.y, blockIdx.x, gridDim.x);
}

template <int kWidth>
int launch(const UniadAttentionMasks& a, void* stream) {
    const int warps = uniad::mask_warps(a.queries);
    const unsigned tiles = uniad::blocks_of(a.cells, uniad::kMaskCells), rows = uniad::blocks_of(a.queries, warps * 16);
    const dim3 blocks(std::min<unsigned>(tiles, uniad::kMaskBlocks), rows);
    return uniad::launch_blocks(masks<kWidth>, blocks, warps * 32, uniad::mask_shared_bytes<kWidth>(), stream, a, warps);
}

}  // namespace

extern "C" int uniad_attention_masks(const UniadAttentionMasks* a, void* stream) {
    if (!uniad::masks_fit(*a)) {
        return uniad::kUnsupported;
    }
    return a->width == 256 ? launch<256>(*a, stream) : launch<128>(*a, stream);
}
