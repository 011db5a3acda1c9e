// UniADTemporalInputs.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs query (B,D), position (B,D), prev_bev (B,D), bev_query (B,D), has_prev int32 (1); outputs pair (B,2D) and maps
/// (2,B,D); see UniadTemporalInputs.
struct TemporalInputs {
    static constexpr const char* kName = "UniADTemporalInputs";
    static constexpr int kInputs = 5, kOutputs = 2;
    static const Attribute kAttributes[1];
    int32_t half;

    bool valid() const { return true; }
    DataType outputType(int) const { return floatType(half); }

    DimsExprs outputDimensions(int output, const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const {
        const auto *cells = inputs[0].d[0], *channels = inputs[0].d[1], *two = builder.constant(2);
        DimsExprs out;
        out.nbDims = output == 0 ? 2 : 3;
        out.d[0] = output == 0 ? cells : two;
        out.d[1] = output == 0 ? builder.operation(DimensionOperation::kPROD, *channels, *two) : cells;
        if (output == 1) {
            out.d[2] = channels;
        }
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        return isLinear(tensors[position], position == 4 ? DataType::kINT32 : floatType(half));
    }
    size_t workspace(const PluginTensorDesc*) const { return 0; }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        UniadTemporalInputs a{};
        a.query = inputs[0];
        a.position = inputs[1];
        a.prev_bev = inputs[2];
        a.bev_query = inputs[3];
        a.has_prev = static_cast<const int*>(inputs[4]);
        a.pair = outputs[0];
        a.maps = outputs[1];
        a.cells = in[0].dims.d[0];
        a.channels = in[0].dims.d[1];
        return uniad_temporal_inputs(&a, half != 0 ? UNIAD_FLOAT16 : UNIAD_FLOAT32, stream);
    }
};
const Attribute TemporalInputs::kAttributes[1] = {{"half", offsetof(TemporalInputs, half), 1}};

}  // namespace

nvinfer1::IPluginCreator* temporalInputsCreator() {
    static Creator<TemporalInputs> creator;
    return &creator;
}

}  // namespace uniad
