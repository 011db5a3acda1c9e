// What the kernels' arithmetic needs to compile for the GPU (nvcc) and for the host (g++, in the tests).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define UNIAD_HD __host__ __device__ __forceinline__
#define UNIAD_DEVICE __device__ __forceinline__  // for what calls device-only functions
using half_t = __half;
#else
#define UNIAD_HD inline
#define UNIAD_DEVICE inline
using half_t = _Float16;
#endif

namespace uniad {

constexpr int kUnsupported = 1;  // cudaErrorInvalidValue: no kernel for these sizes

UNIAD_HD float to_float(float x) { return x; }
UNIAD_HD float to_float(half_t x) {
#if defined(__CUDACC__)
    return __half2float(x);
#else
    return static_cast<float>(x);
#endif
}

template <typename T>
UNIAD_HD T from_float(float x);
template <>
UNIAD_HD float from_float<float>(float x) {
    return x;
}
template <>
UNIAD_HD half_t from_float<half_t>(float x) {
#if defined(__CUDACC__)
    return __float2half_rn(x);
#else
    return static_cast<half_t>(x);
#endif
}

/// Of a GPU.
struct Processors {
    int count, shared, shared_of_block;  // bytes of shared memory: of a processor, of one block
};

/// How many vectors of 16 bytes so many channels of `type` (UniadType: 0 is float) are; 0 where they are not whole ones.
inline int whole_vectors(int channels, int type) {
    const int bytes = channels * static_cast<int>(type == 0 ? sizeof(float) : sizeof(half_t));
    return bytes > 0 && bytes % 16 == 0 ? bytes / 16 : 0;
}

/// The bits of a float.
UNIAD_HD int float_bits(float x) {
#if defined(__CUDA_ARCH__)
    return __float_as_int(x);
#else
    int bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
#endif
}

/// base[index * stride] by one 32 x 32 + 64 bit multiplication.
template <typename T>
UNIAD_HD const T* element(const T* base, unsigned index, unsigned stride) {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(base) +
                                      static_cast<uint64_t>(index) * (stride * static_cast<unsigned>(sizeof(T))));
}

/// kCount consecutive elements, read with the widest load their size allows (16 bytes at most).
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount >= 16 ? 16 : sizeof(T) * kCount) Pack {
    T at[kCount];
};

/// Read-only load; `address` must be aligned to the pack's size, 16 bytes at most.
template <typename T, int kCount>
UNIAD_HD Pack<T, kCount> load(const T* address) {
    Pack<T, kCount> pack;
#if defined(__CUDA_ARCH__)
    constexpr int kBytes = sizeof(T) * kCount;
    static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes % 16 == 0, "no such load");
    if constexpr (kBytes == 2) {
        *reinterpret_cast<unsigned short*>(&pack) = __ldg(reinterpret_cast<const unsigned short*>(address));
    } else if constexpr (kBytes == 4) {
        *reinterpret_cast<unsigned*>(&pack) = __ldg(reinterpret_cast<const unsigned*>(address));
    } else if constexpr (kBytes == 8) {
        *reinterpret_cast<uint2*>(&pack) = __ldg(reinterpret_cast<const uint2*>(address));
    } else {
#pragma unroll
        for (int i = 0; i < kBytes / 16; ++i) {
            reinterpret_cast<uint4*>(&pack)[i] = __ldg(reinterpret_cast<const uint4*>(address) + i);
        }
    }
#else
    std::memcpy(pack.at, address, sizeof(pack.at));
#endif
    return pack;
}

template <typename T, int kCount>
UNIAD_HD void store(T* address, const Pack<T, kCount>& pack) {
#if defined(__CUDA_ARCH__)
    static_assert(sizeof(T) * kCount % 16 == 0, "stores are 16 bytes wide");
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T)) * kCount / 16; ++i) {
        reinterpret_cast<uint4*>(address)[i] = reinterpret_cast<const uint4*>(&pack)[i];
    }
#else
    std::memcpy(address, pack.at, sizeof(pack.at));
#endif
}

}  // namespace uniad
