// The deformable convolution's kernel for Hopper, see deform_conv_sm90.cu.
#pragma once

#include <cuda_runtime_api.h>

#include "../kernels.h"

namespace uniad {

/// Whether the library has the kernel for the current device: machine code of sm_90a, on compute capability 9.0.
bool has_deform_conv_sm90();

/// float16 with a weight of UNIAD_LAYOUT_HOPPER. cudaErrorInvalidValue where hopper_fits says no,
/// cudaErrorNoKernelImageForDevice where has_deform_conv_sm90 does.
int launch_deform_conv_sm90(const UniadDeformConv& arguments, cudaStream_t stream);

}  // namespace uniad
