// The map head's masks on the GPU: attention_masks.cuh's blocks.
#include "attention_masks.cuh"

#include <cuda_runtime_api.h>

namespace {

template <int kWidth>
__global__ __launch_bounds__(uniad::kMaskWarps * 32) void masks(const __grid_constant__ UniadAttentionMasks a, int warps) {
    extern __shared__ __align__(128) char shared[];
    uniad::attention_masks<kWidth>(uniad::DeviceBlock(shared), a, warps, blockIdx.y, blockIdx.x, gridDim.x);
}

template <int kWidth>
int launch(const UniadAttentionMasks& a, cudaStream_t stream) {
    constexpr int kShared = uniad::mask_shared_bytes<kWidth>();
    const cudaError_t error = cudaFuncSetAttribute(masks<kWidth>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (error != cudaSuccess) {
        return error;
    }
    const int warps = uniad::mask_warps(a.queries), tiles = (a.cells + uniad::kMaskCells - 1) / uniad::kMaskCells;
    const auto columns = static_cast<unsigned>(tiles < uniad::kMaskBlocks ? tiles : uniad::kMaskBlocks);
    const auto rows = static_cast<unsigned>((a.queries + warps * 16 - 1) / (warps * 16));
    masks<kWidth><<<dim3(columns, rows), warps * 32, kShared, stream>>>(a, warps);
    return cudaGetLastError();
}

}  // namespace

extern "C" int uniad_attention_masks(const UniadAttentionMasks* a, void* stream) {
    if (!uniad::masks_fit(*a)) {
        return uniad::kUnsupported;
    }
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    return a->width == 256 ? launch<256>(*a, cuda_stream) : launch<128>(*a, cuda_stream);
}
