// UniADExpandConv.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs input (N,C,H,W) and residual (N,O,H,W) with the channels last, weight (O/32,C/16,32,16), bias float32 (O); output as
/// the residual. See UniadExpandConv.
struct ExpandConv : OneOutput<ExpandConv> {
    static constexpr const char* kName = "UniADExpandConv";
    static constexpr int kInputs = 4;
    static const Attribute kAttributes[1];
    int32_t half;

    bool valid() const { return half == 1; }
    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder&) const { return inputs[1]; }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        const PluginTensorDesc& tensor = tensors[position];
        if (position == 2 || position == 3) {
            return isLinear(tensor, position == 2 ? DataType::kHALF : DataType::kFLOAT);
        }
        return isChannelsLast(tensor);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        const auto& x = in[0].dims;
        UniadExpandConv a{};
        a.input = inputs[0];
        a.residual = inputs[1];
        a.weight = inputs[2];
        a.bias = static_cast<const float*>(inputs[3]);
        a.out = outputs[0];
        a.rows = x.d[0] * x.d[2] * x.d[3];
        a.channels = x.d[1];
        a.outputs = in[1].dims.d[1];
        return uniad_expand_conv(&a, stream);
    }
};
const Attribute ExpandConv::kAttributes[1] = {{"half", offsetof(ExpandConv, half), 1}};

}  // namespace

nvinfer1::IPluginCreator* expandConvCreator() {
    static Creator<ExpandConv> creator;
    return &creator;
}

}  // namespace uniad
