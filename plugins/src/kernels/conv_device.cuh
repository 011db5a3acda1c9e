// What the float16 kernels of the deformable convolution share on the device.
#pragma once

#include "deform_conv.cuh"

namespace uniad {

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

/// Volatile, so that the loads stay ahead of the work that hides their latency.
__device__ __forceinline__ uint4 load_cell(const void* from) {
    uint4 out;
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(from));
    return out;
}

__device__ __forceinline__ __half2 as_half2(unsigned bits) { return *reinterpret_cast<__half2*>(&bits); }
__device__ __forceinline__ unsigned as_bits(__half2 x) { return *reinterpret_cast<unsigned*>(&x); }

/// Eight channels of a sample: four corners by their weights, each of which stands twice in its half2.
__device__ __forceinline__ uint4 blend_corners(const uint4 (&corners)[4], const __half2 (&by)[4]) {
    unsigned mixed[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const auto at = [&](int corner) { return as_half2(reinterpret_cast<const unsigned*>(&corners[corner])[j]); };
        __half2 sum = __hmul2(by[0], at(0));
        sum = __hfma2(by[1], at(1), sum);
        sum = __hfma2(by[2], at(2), sum);
        mixed[j] = as_bits(__hfma2(by[3], at(3), sum));
    }
    return {mixed[0], mixed[1], mixed[2], mixed[3]};
}

}  // namespace uniad
