// The deformable convolution's kernel for Hopper, see deform_conv_sm90.cu.
#pragma once

#include <cuda_runtime_api.h>

#include "../kernels.h"

namespace uniad {

/// float16, C a multiple of 64 and O of 256, the weight packed by kernel_calls.pack_hopper_weight.
/// cudaErrorInvalidValue for other sizes and where the library has no machine code of sm_90a.
int launch_deform_conv_sm90(const UniadDeformConv& arguments, int variant, cudaStream_t stream);

}  // namespace uniad
