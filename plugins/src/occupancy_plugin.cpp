// UniADOccupancy.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs query (T,A,D) and state (T,D,H,W) with the channels last, float16, and score float32 (A); output int32 (T,H,W),
/// so that `half` stays 0. See UniadOccupancy.
struct Occupancy {
    static constexpr const char* kName = "UniADOccupancy";
    static constexpr int kInputs = 3, kOutputs = 1;
    static const Attribute kAttributes[2];
    int32_t half;
    float threshold;

    bool valid() const { return half == 0 && threshold >= 0; }
    DataType outputType(int) const { return DataType::kINT32; }
    size_t workspace(const PluginTensorDesc*) const { return 0; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder&) const {
        DimsExprs out;
        out.nbDims = 3;
        out.d[0] = inputs[1].d[0];
        out.d[1] = inputs[1].d[2];
        out.d[2] = inputs[1].d[3];
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        const PluginTensorDesc& tensor = tensors[position];
        switch (position) {
            case 0: return isLinear(tensor, DataType::kHALF);
            case 1: return isChannelsLast(tensor);
            case 2: return isLinear(tensor, DataType::kFLOAT);
            default: return isLinear(tensor, DataType::kINT32);
        }
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        UniadOccupancy a{};
        a.query = inputs[0];
        a.state = inputs[1];
        a.score = static_cast<const float*>(inputs[2]);
        a.out = static_cast<int*>(outputs[0]);
        a.steps = in[0].dims.d[0];
        a.instances = in[0].dims.d[1];
        a.cells = in[1].dims.d[2] * in[1].dims.d[3];
        a.width = in[0].dims.d[2];
        a.threshold = threshold;
        return uniad_occupancy(&a, stream);
    }
};
const Attribute Occupancy::kAttributes[2] = {
    {"half", offsetof(Occupancy, half), 1},
    {"threshold", offsetof(Occupancy, threshold), 1, nvinfer1::PluginFieldType::kFLOAT32},
};

}  // namespace

nvinfer1::IPluginCreator* occupancyCreator() {
    static Creator<Occupancy> creator;
    return &creator;
}

}  // namespace uniad
