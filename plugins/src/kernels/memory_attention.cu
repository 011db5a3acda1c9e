// Attention to a memory that is its own keys and values, on the GPU: memory_attention.cuh's blocks.
#include "memory_attention.cuh"

#include "launch.cuh"

namespace {

using uniad::AttendPlan;
using uniad::kAttendThreads;

template <int kWidth>
__global__ __launch_bounds__(kAttendThreads, 2) void attend(const __grid_constant__ UniadMemoryAttention a,
                                                            const AttendPlan plan) {
    extern __shared__ __align__(128) char shared[];
    uniad::attend_part<kWidth>(uniad::DeviceBlock(shared), a, plan, blockIdx.y, blockIdx.x);
}

__global__ void merge(const __grid_constant__ UniadMemoryAttention a, int parts) {
    extern __shared__ __align__(128) char shared[];
    uniad::merge_parts(uniad::DeviceBlock(shared), uniad::attend_sums(a, parts), a.out, blockIdx.x);
}

template <int kWidth>
int launch(const UniadMemoryAttention& a, void* stream) {
    const AttendPlan plan = uniad::attend_plan(a.rows, a.cells);
    const dim3 blocks(static_cast<unsigned>(plan.parts), static_cast<unsigned>(plan.row_blocks));
    constexpr int kShared = uniad::attend_shared_bytes<kWidth>();
    const int error = uniad::launch_blocks(attend<kWidth>, blocks, kAttendThreads, kShared, stream, a, plan);
    if (error != 0) {
        return error;
    }
    return uniad::launch_blocks(merge, a.rows, kWidth, uniad::kMergeSharedBytes, stream, a, plan.parts);
}

}  // namespace

extern "C" size_t uniad_memory_attention_workspace(int rows, int cells, int width) {
    const UniadMemoryAttention a{nullptr, nullptr, nullptr, nullptr, rows, cells, width};
    if (!uniad::attend_fits(a)) {
        return 0;
    }
    return uniad::PartSums::bytes(uniad::attend_plan(rows, cells).parts, rows, width);
}

extern "C" int uniad_memory_attention(const UniadMemoryAttention* a, void* stream) {
    if (!uniad::attend_fits(*a)) {
        return uniad::kUnsupported;
    }
    return a->width == 256 ? launch<256>(*a, stream) : launch<128>(*a, stream);
}
