// Normalised sums of rows on the GPU: layer_norm.cuh's lanes are threads of one warp, which takes as many rows as fit.
#include "layer_norm.cuh"

#include "launch.cuh"

namespace {

constexpr int kThreads = 256;
constexpr unsigned kAll = 0xffffffffu;

/// The lanes of one row, seen by one of them.
template <typename Part>
struct Group {
    Part part;
    int lane, lanes;
    bool has_row;

    template <typename F>
    __device__ __forceinline__ void each(const F& f) {
        if (has_row) {
            f(lane, part);
        }
    }
    /// All lanes of the warp take part, those without a row too.
    template <typename F>
    __device__ __forceinline__ float sum(const F& f) const {
        float total = f(lane, part);
        for (int apart = lanes / 2; apart > 0; apart /= 2) {
            total += __shfl_xor_sync(kAll, total, apart);
        }
        return total;
    }
};

template <typename T, int Vectors>
__global__ __launch_bounds__(kThreads) void add_layer_norm(const __grid_constant__ UniadAddLayerNorm a, int lanes) {
    const int rows = kThreads / lanes;  // of a block
    const int64_t row = static_cast<int64_t>(blockIdx.x) * rows + threadIdx.x / lanes;
    Group<uniad::NormPart<T, Vectors>> group{{}, static_cast<int>(threadIdx.x) % lanes, lanes, row < a.rows};
    uniad::normalise_row(a, static_cast<int>(row), lanes, group);
}

struct OnDevice {
    cudaStream_t stream;
    template <typename T, int Vectors>
    int run(const UniadAddLayerNorm& a, int lanes) const {
        add_layer_norm<T, Vectors><<<uniad::blocks_of(a.rows, kThreads / lanes), kThreads, 0, stream>>>(a, lanes);
        return cudaGetLastError();
    }
};

}  // namespace

extern "C" int uniad_add_layer_norm(const UniadAddLayerNorm* a, int type, void* stream) {
    return uniad::run_add_layer_norm(*a, type, OnDevice{static_cast<cudaStream_t>(stream)});
}
