// Attention of many heads on the GPU: multihead_attention.cuh's blocks.
#include "multihead_attention.cuh"

#include <cuda_runtime_api.h>

namespace {

using uniad::kHeadQueries;
using uniad::kHeadThreads;

template <int kChannels>
__global__ __launch_bounds__(kHeadThreads, 4) void attend(const __grid_constant__ UniadMultiheadAttention a) {
    extern __shared__ __align__(128) char shared[];
    uniad::multihead_attention<kChannels>(uniad::DeviceBlock(shared), a, blockIdx.x, blockIdx.y, blockIdx.z);
}

template <int kChannels>
int launch(const UniadMultiheadAttention& a, cudaStream_t stream) {
    constexpr int kShared = uniad::heads_shared_bytes<kChannels>();
    static_assert(kShared <= 48 << 10, "what every kernel may have");
    const dim3 blocks(static_cast<unsigned>((a.queries + kHeadQueries - 1) / kHeadQueries),
                      static_cast<unsigned>(a.heads), static_cast<unsigned>(a.groups));
    attend<kChannels><<<blocks, kHeadThreads, kShared, stream>>>(a);
    return cudaGetLastError();
}

}  // namespace

extern "C" int uniad_multihead_attention(const UniadMultiheadAttention* a, void* stream) {
    if (!uniad::heads_fit(*a)) {
        return uniad::kUnsupported;
    }
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    return a->channels == 32 ? launch<32>(*a, cuda_stream) : launch<16>(*a, cuda_stream);
}
