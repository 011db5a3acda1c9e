// Products and sums that are rounded each for itself, as in a composition of plain layers: the compiler must not join
// them to one rounding where the composition has two.
#pragma once

#include "host_device.cuh"

namespace uniad {

UNIAD_HD float product(float x, float y) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(x, y);
#else
    return x * y;
#endif
}

UNIAD_HD float sum(float x, float y) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(x, y);
#else
    return x + y;
#endif
}

}  // namespace uniad
