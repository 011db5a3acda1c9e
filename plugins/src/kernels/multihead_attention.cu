// Attention of many heads on the GPU: multihead_attention.cuh's blocks.
#include "multihead_attention.cuh"

#include <cuda_runtime_api.h>

namespace {

using uniad::kHeadThreads;

template <int kChannels>
__global__ __launch_bounds__(kHeadThreads, 4) void attend(const __grid_constant__ UniadMultiheadAttention a,
                                                            const uniad::HeadsPlan plan) {
    extern __shared__ __align__(128) char shared[];
    const int queries = blockIdx.x % plan.query_blocks, part = blockIdx.x / plan.query_blocks;
    uniad::multihead_attention<kChannels>(uniad::DeviceBlock(shared), a, plan, queries, part, blockIdx.y, blockIdx.z);
}

__global__ void merge(const uniad::PartSums sums, void* out) {
    extern __shared__ __align__(128) char shared[];
    uniad::merge_parts(uniad::DeviceBlock(shared), sums, out, blockIdx.x);
}

template <int kChannels>
int launch(const UniadMultiheadAttention& a, cudaStream_t stream) {
    constexpr int kShared = uniad::heads_shared_bytes<kChannels>();
    static_assert(kShared <= 48 << 10, "what every kernel may have");
    const uniad::HeadsPlan plan = uniad::heads_plan(a);
    const dim3 blocks(static_cast<unsigned>(plan.query_blocks * plan.parts), static_cast<unsigned>(a.heads),
                      static_cast<unsigned>(a.groups));
    attend<kChannels><<<blocks, kHeadThreads, kShared, stream>>>(a, plan);
    if (plan.parts > 1) {
        const uniad::PartSums sums = uniad::heads_sums(a, plan.parts);
        merge<<<static_cast<unsigned>(sums.rows), kChannels, uniad::kMergeSharedBytes, stream>>>(sums, a.out);
    }
    return cudaGetLastError();
}

}  // namespace

extern "C" size_t uniad_multihead_attention_workspace(const UniadMultiheadAttention* a) {
    return uniad::heads_fit(*a) ? uniad::heads_workspace(*a) : 0;
}

extern "C" int uniad_multihead_attention(const UniadMultiheadAttention* a, void* stream) {
    if (!uniad::heads_fit(*a)) {
        return uniad::kUnsupported;
    }
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    return a->channels == 32 ? launch<32>(*a, cuda_stream) : launch<16>(*a, cuda_stream);
}
