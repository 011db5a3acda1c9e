// UniADMultiheadAttention and UniADMaskedMultiheadAttention.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs query (…,Q,M,C), key and value (…,K,H,C), float16, with Masked int32 blocked, (K) or (Q,K) behind ones; output
/// float16 (…,Q,M,C). See UniadMultiheadAttention.
template <bool Masked>
struct MultiheadAttention : OneOutput<MultiheadAttention<Masked>> {
    static constexpr const char* kName = Masked ? "UniADMaskedMultiheadAttention" : "UniADMultiheadAttention";
    static constexpr int kInputs = Masked ? 4 : 3;
    static const Attribute kAttributes[3];
    int32_t half, key_head, value_head;

    bool valid() const { return half == 1 && key_head >= 0 && value_head >= 0; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder&) const { return inputs[0]; }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        return isLinear(tensors[position], position == 3 && Masked ? DataType::kINT32 : DataType::kHALF);
    }
    /// The product of the first `count` dimensions.
    static int leading(const Dims& dims, int32_t count) {
        int product = 1;
        for (int32_t i = 0; i < count; ++i) {
            product *= static_cast<int>(dims.d[i]);
        }
        return product;
    }
    UniadMultiheadAttention sizes(const PluginTensorDesc* in) const {
        const Dims &query = in[0].dims, &key = in[1].dims;
        UniadMultiheadAttention a{};
        a.groups = leading(query, query.nbDims - 3);
        a.queries = query.d[query.nbDims - 3];
        a.keys = key.d[key.nbDims - 3];
        a.heads = query.d[query.nbDims - 2];
        a.channels = query.d[query.nbDims - 1];
        a.row_heads = key.d[key.nbDims - 2];
        a.key_head = key_head;
        a.value_head = value_head;
        a.blocked_rows = Masked ? leading(in[3].dims, in[3].dims.nbDims - 1) : 0;
        return a;
    }
    size_t workspace(const PluginTensorDesc* in) const {
        const UniadMultiheadAttention a = sizes(in);
        return uniad_multihead_attention_workspace(&a);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void* workspace, cudaStream_t stream) const {
        UniadMultiheadAttention a = sizes(in);
        a.query = inputs[0];
        a.key = inputs[1];
        a.value = inputs[2];
        a.blocked = Masked ? static_cast<const int*>(inputs[3]) : nullptr;
        a.out = outputs[0];
        a.workspace = workspace;
        return uniad_multihead_attention(&a, stream);
    }
};
template <bool Masked>
const Attribute MultiheadAttention<Masked>::kAttributes[3] = {
    {"half", offsetof(MultiheadAttention, half), 1},
    {"key_head", offsetof(MultiheadAttention, key_head), 1},
    {"value_head", offsetof(MultiheadAttention, value_head), 1},
};

}  // namespace

nvinfer1::IPluginCreator* multiheadAttentionCreator() {
    static Creator<MultiheadAttention<false>> creator;
    return &creator;
}

nvinfer1::IPluginCreator* maskedMultiheadAttentionCreator() {
    static Creator<MultiheadAttention<true>> creator;
    return &creator;
}

}  // namespace uniad
