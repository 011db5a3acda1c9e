// What the library says about itself.
#include <cuda_runtime_api.h>

#include "../kernels.h"

#define UNIAD_TEXT_(x) #x
#define UNIAD_TEXT(x) UNIAD_TEXT_(x)

#if defined(UNIAD_VARIANTS)
#define UNIAD_BUILD_VARIANTS "1"
#else
#define UNIAD_BUILD_VARIANTS "0"
#endif
#if !defined(UNIAD_TENSORRT)  // set by the build: the version of the TensorRT headers, or none
#define UNIAD_TENSORRT none
#endif
#if !defined(UNIAD_ARCHITECTURES)
#define UNIAD_ARCHITECTURES unknown
#endif

namespace {
__global__ void probe() {}
}  // namespace

extern "C" int uniad_plugins_version(void) { return UNIAD_PLUGINS_VERSION; }

extern "C" const char* uniad_plugins_build(void) {
    return "version=" UNIAD_TEXT(UNIAD_PLUGINS_VERSION) " cuda=" UNIAD_TEXT(CUDART_VERSION) " tensorrt=" UNIAD_TEXT(
        UNIAD_TENSORRT) " architectures=" UNIAD_TEXT(UNIAD_ARCHITECTURES) " variants=" UNIAD_BUILD_VARIANTS;
}

extern "C" int uniad_plugins_check_device(void) {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, probe);
    cudaGetLastError();  // a failed query must not be taken for a later launch's failure
    return error;
}

extern "C" const char* uniad_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
