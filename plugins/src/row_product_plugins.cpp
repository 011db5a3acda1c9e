// UniADExpandConv and UniADLinearNorm.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs x (R,C), residual (R,O), weight (O/32,C/16,32,16), bias float32 (O) and, with Norm, gain and shift float32 (O) of
/// a layer norm; output as the residual. Without it x, residual and output are maps (N,C,H,W) with the channels last, and
/// the sum goes through a ReLU. See UniadRowProduct.
template <bool Norm>
struct RowProduct : OneOutput<RowProduct<Norm>> {
    static constexpr const char* kName = Norm ? "UniADLinearNorm" : "UniADExpandConv";
    static constexpr int kInputs = Norm ? 6 : 4;
    static const Attribute kAttributes[2];
    int32_t half;
    float eps;

    bool valid() const { return half == 1 && (eps > 0) == Norm; }
    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder&) const { return inputs[1]; }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        const PluginTensorDesc& tensor = tensors[position];
        if (position >= 2 && position < kInputs) {
            return isLinear(tensor, position == 2 ? DataType::kHALF : DataType::kFLOAT);
        }
        return Norm ? isLinear(tensor, DataType::kHALF) : isChannelsLast(tensor);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        const auto& x = in[0].dims;
        UniadRowProduct a{};
        a.input = inputs[0];
        a.residual = inputs[1];
        a.weight = inputs[2];
        a.bias = static_cast<const float*>(inputs[3]);
        a.gain = Norm ? static_cast<const float*>(inputs[4]) : nullptr;
        a.shift = Norm ? static_cast<const float*>(inputs[5]) : nullptr;
        a.out = outputs[0];
        a.rows = Norm ? x.d[0] : x.d[0] * x.d[2] * x.d[3];
        a.channels = x.d[1];
        a.outputs = in[1].dims.d[1];
        a.eps = eps;
        return uniad_row_product(&a, stream);
    }
};
template <bool Norm>
const Attribute RowProduct<Norm>::kAttributes[2] = {
    {"half", offsetof(RowProduct, half), 1},
    {"eps", offsetof(RowProduct, eps), 1, nvinfer1::PluginFieldType::kFLOAT32},
};

}  // namespace

nvinfer1::IPluginCreator* expandConvCreator() {
    static Creator<RowProduct<false>> creator;
    return &creator;
}

nvinfer1::IPluginCreator* linearNormCreator() {
    static Creator<RowProduct<true>> creator;
    return &creator;
}

}  // namespace uniad
