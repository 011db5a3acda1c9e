// Normalised and padded camera images on the GPU: normalise_images.cuh's pixels, a thread each.
#include "normalise_images.cuh"

#include <cuda_runtime_api.h>

namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ __launch_bounds__(kThreads) void normalise_images(const __grid_constant__ UniadNormaliseImages a, int pixels) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (index < pixels) {
        uniad::normalise_pixel<T>(a, static_cast<int>(index));
    }
}

}  // namespace

extern "C" int uniad_normalise_images(const UniadNormaliseImages* a, int type, void* stream) {
    const int pixels = uniad::normalised_pixels(*a);
    if (pixels == 0) {
        return uniad::kUnsupported;
    }
    const auto blocks = static_cast<unsigned>((static_cast<int64_t>(pixels) + kThreads - 1) / kThreads);
    const auto kernel = type == UNIAD_FLOAT16 ? normalise_images<half_t> : normalise_images<float>;
    kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(*a, pixels);
    return cudaGetLastError();
}
