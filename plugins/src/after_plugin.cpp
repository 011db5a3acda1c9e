// UniADAfter: a copy of its first input that TensorRT can't make before the second is there.
#include <cuda_runtime_api.h>

#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

/// TensorRT 8.6 compiles what has no plugin in it in regions, and takes minutes for a large one. A region can't hold
/// both sides of a plugin: this one parts what would otherwise become one region. The second input is not read.
struct After : OneOutput<After> {
    static constexpr const char* kName = "UniADAfter";
    static constexpr int kInputs = 2;
    static const Attribute kAttributes[1];
    int32_t half;

    bool valid() const { return true; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder&) const { return inputs[0]; }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        const PluginTensorDesc& tensor = tensors[position];
        if (position == 1) {
            const bool known =
                tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF || tensor.type == DataType::kINT32;
            return known && tensor.format == TensorFormat::kLINEAR;
        }
        return isLinear(tensor, floatType(half));
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        size_t bytes = half != 0 ? 2 : 4;
        for (int32_t i = 0; i < in[0].dims.nbDims; ++i) {
            bytes *= static_cast<size_t>(in[0].dims.d[i]);
        }
        return cudaMemcpyAsync(outputs[0], inputs[0], bytes, cudaMemcpyDeviceToDevice, stream);
    }
};
const Attribute After::kAttributes[1] = {{"half", offsetof(After, half), 1}};

}  // namespace

nvinfer1::IPluginCreator* afterCreator() {
    static Creator<After> creator;
    return &creator;
}

}  // namespace uniad
