// How .cu files launch kernels: blocks with much shared memory, or a thread for each element. All return an error code.
#pragma once

#include <cuda_runtime_api.h>

#include <climits>

#include "host_device.cuh"

namespace uniad {

/// How many blocks of `size` hold `count`.
inline unsigned blocks_of(int64_t count, int size) { return static_cast<unsigned>((count + size - 1) / size); }

/// Those of the current GPU.
inline cudaError_t ask_processors(Processors& gpu) {
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    const auto ask = [&](int& value, cudaDeviceAttr attribute) {
        error = error == cudaSuccess ? cudaDeviceGetAttribute(&value, attribute, device) : error;
    };
    ask(gpu.count, cudaDevAttrMultiProcessorCount);
    ask(gpu.shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    ask(gpu.shared_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    return error;
}

/// Whether a block on the current GPU can have so many bytes of shared memory.
inline bool block_has_shared(int bytes) {
    Processors gpu{};
    if (ask_processors(gpu) != cudaSuccess) {
        cudaGetLastError();  // a failed query must not be taken for a later launch's failure
        return false;
    }
    return gpu.shared_of_block >= bytes;
}

/// Blocks with `shared` bytes of dynamic shared memory, of which a kernel has 48 KB at most unless it asks for more.
template <typename... Parameters>
int launch_blocks(void (*kernel)(Parameters...), dim3 blocks, int threads, int shared, void* stream,
                  const Parameters&... arguments) {
    if (shared > 48 << 10) {
        const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
        if (error != cudaSuccess) {
            return error;
        }
    }
    kernel<<<blocks, threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
    return cudaGetLastError();
}

template <auto kWork, int kThreads, typename Arguments, typename... More>
__global__ __launch_bounds__(kThreads) void each_element(const __grid_constant__ Arguments a, int count, More... more) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (index < count) {
        kWork(a, more..., static_cast<int>(index));
    }
}

/// kWork(a, more..., index) for every index below `count`, a thread each; a count of 0 stands for sizes without a kernel.
/// It is a double, which no product of sizes overflows.
template <auto kWork, int kThreads = 256, typename Arguments, typename... More>
int launch_elements(const Arguments& a, double count, void* stream, More... more) {
    if (count <= 0 || count > INT_MAX) {
        return kUnsupported;
    }
    const int elements = static_cast<int>(count);
    each_element<kWork, kThreads><<<blocks_of(elements, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        a, elements, more...);
    return cudaGetLastError();
}

}  // namespace uniad
