// Deformable attention and camera cross-attention on the GPU.
#include <cuda_runtime_api.h>

#include "attention.cuh"

namespace {

template <typename Work, typename Arguments>
__global__ __launch_bounds__(Work::kThreads) void kernel(const __grid_constant__ Arguments arguments) {
    Work::thread(arguments, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
}

struct OnDevice {
    cudaStream_t stream;
    template <typename Work, typename Arguments>
    int run(const Arguments& arguments, int x, int y, int z) const {
        kernel<Work><<<dim3(x, y, z), Work::kThreads, 0, stream>>>(arguments);
        return cudaGetLastError();
    }
};

}  // namespace

extern "C" int uniad_deformable_attention(const UniadDeformableAttention* a, int type, int variant, void* stream) {
    return uniad::run_deformable_attention(*a, type, variant, OnDevice{static_cast<cudaStream_t>(stream)});
}

extern "C" int uniad_camera_attention(const UniadCameraAttention* a, int type, int variant, void* stream) {
    return uniad::run_camera_attention(*a, type, variant, OnDevice{static_cast<cudaStream_t>(stream)});
}
