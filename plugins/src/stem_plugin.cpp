// UniADStem.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs images (N,3,H,W) in planes, weight (2,11,32,16), bias float32 (64); output (N,64,H/4,W/4) with the channels last.
/// See UniadStem.
struct Stem : OneOutput<Stem> {
    static constexpr const char* kName = "UniADStem";
    static constexpr int kInputs = 3;
    static const Attribute kAttributes[1];
    int32_t half;

    bool valid() const { return half == 1; }
    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const {
        DimsExprs out = inputs[0];
        out.d[1] = inputs[2].d[0];
        for (int i = 2; i < 4; ++i) {
            out.d[i] = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *out.d[i], *builder.constant(4));
        }
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        return position == 3 ? isChannelsLast(tensors[3])
                             : isLinear(tensors[position], position == 2 ? DataType::kFLOAT : DataType::kHALF);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        UniadStem a{};
        a.input = inputs[0];
        a.weight = inputs[1];
        a.bias = static_cast<const float*>(inputs[2]);
        a.out = outputs[0];
        a.images = in[0].dims.d[0];
        a.height = in[0].dims.d[2];
        a.width = in[0].dims.d[3];
        return uniad_stem(&a, stream);
    }
};
const Attribute Stem::kAttributes[1] = {{"half", offsetof(Stem, half), 1}};

}  // namespace

nvinfer1::IPluginCreator* stemCreator() {
    static Creator<Stem> creator;
    return &creator;
}

}  // namespace uniad
