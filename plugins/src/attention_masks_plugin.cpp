// UniADAttentionMasks.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs query (N,M*C) and key (B,M*C), float16, then float32 mix (M,M), mix_bias (M), sum (1,M), sum_bias (1); output
/// float32 (N,B), so that `half` stays 0. See UniadAttentionMasks.
struct AttentionMasks : OneOutput<AttentionMasks> {
    static constexpr const char* kName = "UniADAttentionMasks";
    static constexpr int kInputs = 6;
    static const Attribute kAttributes[2];
    int32_t half, heads;

    bool valid() const { return half == 0 && heads > 0; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder&) const {
        DimsExprs out = inputs[0];
        out.d[1] = inputs[1].d[0];
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        return isLinear(tensors[position], position < 2 ? DataType::kHALF : DataType::kFLOAT);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        UniadAttentionMasks a{};
        a.query = inputs[0];
        a.key = inputs[1];
        a.mix = static_cast<const float*>(inputs[2]);
        a.mix_bias = static_cast<const float*>(inputs[3]);
        a.sum = static_cast<const float*>(inputs[4]);
        a.sum_bias = static_cast<const float*>(inputs[5]);
        a.out = static_cast<float*>(outputs[0]);
        a.queries = in[0].dims.d[0];
        a.cells = in[1].dims.d[0];
        a.heads = heads;
        a.width = in[0].dims.d[1];
        return uniad_attention_masks(&a, stream);
    }
};
const Attribute AttentionMasks::kAttributes[2] = {
    {"half", offsetof(AttentionMasks, half), 1},
    {"heads", offsetof(AttentionMasks, heads), 1},
};

}  // namespace

nvinfer1::IPluginCreator* attentionMasksCreator() {
    static Creator<AttentionMasks> creator;
    return &creator;
}

}  // namespace uniad
