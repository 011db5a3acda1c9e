// UniADMemoryAttention.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs query (R,D) and memory (B,D), output (R,D), all float16; see UniadMemoryAttention.
struct MemoryAttention : OneOutput<MemoryAttention> {
    static constexpr const char* kName = "UniADMemoryAttention";
    static constexpr int kInputs = 2;
    static const Attribute kAttributes[1];
    int32_t half;

    bool valid() const { return half == 1; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder&) const { return inputs[0]; }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        return isLinear(tensors[position], DataType::kHALF);
    }
    size_t workspace(const PluginTensorDesc* in) const {
        return uniad_memory_attention_workspace(in[0].dims.d[0], in[1].dims.d[0], in[0].dims.d[1]);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void* workspace, cudaStream_t stream) const {
        UniadMemoryAttention a{};
        a.query = inputs[0];
        a.memory = inputs[1];
        a.out = outputs[0];
        a.workspace = workspace;
        a.rows = in[0].dims.d[0];
        a.cells = in[1].dims.d[0];
        a.width = in[0].dims.d[1];
        return uniad_memory_attention(&a, stream);
    }
};
const Attribute MemoryAttention::kAttributes[1] = {{"half", offsetof(MemoryAttention, half), 1}};

}  // namespace

nvinfer1::IPluginCreator* memoryAttentionCreator() {
    static Creator<MemoryAttention> creator;
    return &creator;
}

}  // namespace uniad
