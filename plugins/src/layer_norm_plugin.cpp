// UniADAddLayerNorm and UniADLayerNorm.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs x (…,D), with WithResidual another (…,D) to be added, float32 gain (D) and shift (D), output (…,D); see
/// UniadAddLayerNorm.
template <bool WithResidual>
struct LayerNorm : OneOutput<LayerNorm<WithResidual>> {
    static constexpr const char* kName = WithResidual ? "UniADAddLayerNorm" : "UniADLayerNorm";
    static constexpr int kInputs = WithResidual ? 4 : 3;
    static const Attribute kAttributes[2];
    int32_t half;
    float eps;

    bool valid() const { return eps > 0; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder&) const { return inputs[0]; }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        const bool affine = position == kInputs - 2 || position == kInputs - 1;
        return isLinear(tensors[position], affine ? DataType::kFLOAT : floatType(half));
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        const auto& dims = in[0].dims;
        UniadAddLayerNorm a{};
        a.input = inputs[0];
        a.residual = WithResidual ? inputs[1] : nullptr;
        a.gain = static_cast<const float*>(inputs[kInputs - 2]);
        a.shift = static_cast<const float*>(inputs[kInputs - 1]);
        a.out = outputs[0];
        a.channels = dims.d[dims.nbDims - 1];
        a.rows = 1;
        for (int32_t i = 0; i < dims.nbDims - 1; ++i) {
            a.rows *= dims.d[i];
        }
        a.eps = eps;
        return uniad_add_layer_norm(&a, half != 0 ? UNIAD_FLOAT16 : UNIAD_FLOAT32, stream);
    }
};
template <bool WithResidual>
const Attribute LayerNorm<WithResidual>::kAttributes[2] = {
    {"half", offsetof(LayerNorm, half), 1},
    {"eps", offsetof(LayerNorm, eps), 1, nvinfer1::PluginFieldType::kFLOAT32},
};

}  // namespace

nvinfer1::IPluginCreator* addLayerNormCreator() {
    static Creator<LayerNorm<true>> creator;
    return &creator;
}

nvinfer1::IPluginCreator* layerNormCreator() {
    static Creator<LayerNorm<false>> creator;
    return &creator;
}

}  // namespace uniad
