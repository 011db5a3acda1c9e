// Attention of many heads on the GPU: multihead_attention.cuh's blocks.
#include "multihead_attention.cuh"

#include "launch.cuh"

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
int launch(const UniadMultiheadAttention& a, void* stream) {
    constexpr int kShared = uniad::heads_shared_bytes<kChannels>();
    const uniad::HeadsPlan plan = uniad::heads_plan(a);
    const dim3 blocks(static_cast<unsigned>(plan.query_blocks * plan.parts), static_cast<unsigned>(a.heads),
                      static_cast<unsigned>(a.groups));
    const int error = uniad::launch_blocks(attend<kChannels>, blocks, kHeadThreads, kShared, stream, a, plan);
    if (error != 0 || plan.parts == 1) {
        return error;
    }
    const uniad::PartSums sums = uniad::heads_sums(a, plan.parts);
    return uniad::launch_blocks(merge, sums.rows, kChannels, uniad::kMergeSharedBytes, stream, sums, a.out);
}

}  // namespace

extern "C" size_t uniad_multihead_attention_workspace(const UniadMultiheadAttention* a) {
    return uniad::heads_fit(*a) ? uniad::heads_workspace(*a) : 0;
}

extern "C" int uniad_multihead_attention(const UniadMultiheadAttention* a, void* stream) {
    if (!uniad::heads_fit(*a)) {
        return uniad::kUnsupported;
    }
    return a->channels == 32 ? launch<32>(*a, stream) : launch<16>(*a, stream);
}
