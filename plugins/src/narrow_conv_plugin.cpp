// UniADNarrowConv.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs input (N,C,H,W) with the channels last, weight (C/32,9,32,32), bias float32 (32); output (N,outputs,H,W) with the
/// channels last. See UniadNarrowConv.
struct NarrowConv : OneOutput<NarrowConv> {
    static constexpr const char* kName = "UniADNarrowConv";
    static constexpr int kInputs = 3;
    static const Attribute kAttributes[2];
    int32_t half, outputs;

    /// 25 to 32 outputs, or the padded output would have fewer channels than the kernel writes.
    bool valid() const { return half == 1 && outputs > 24 && outputs <= 32; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const {
        DimsExprs out = inputs[0];
        out.d[1] = builder.constant(outputs);
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        const PluginTensorDesc& tensor = tensors[position];
        if (position == 0 || position == 3) {
            return isChannelsLast(tensor);
        }
        return isLinear(tensor, position == 1 ? DataType::kHALF : DataType::kFLOAT);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs_,
                void*, cudaStream_t stream) const {
        UniadNarrowConv a{};
        a.input = inputs[0];
        a.weight = inputs[1];
        a.bias = static_cast<const float*>(inputs[2]);
        a.out = outputs_[0];
        a.batch = in[0].dims.d[0];
        a.channels = in[0].dims.d[1];
        a.height = in[0].dims.d[2];
        a.width = in[0].dims.d[3];
        return uniad_narrow_conv(&a, stream);
    }
};
const Attribute NarrowConv::kAttributes[2] = {
    {"half", offsetof(NarrowConv, half), 1},
    {"outputs", offsetof(NarrowConv, outputs), 1},
};

}  // namespace

nvinfer1::IPluginCreator* narrowConvCreator() {
    static Creator<NarrowConv> creator;
    return &creator;
}

}  // namespace uniad
