// UniADPropagate.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs ref_pts (T,3), velocity (T,2), l2g_r_prev (3,3), l2g_t_prev (3), l2g_t (3), l2g_r_inv (3,3), time_delta (1);
/// output (T,3); see UniadPropagate. All float32 in every network, so that `half` stays 0.
struct Propagate : OneOutput<Propagate> {
    static constexpr const char* kName = "UniADPropagate";
    static constexpr int kInputs = 7;
    static const Attribute kAttributes[3];
    int32_t half;
    float low[3], size[3];

    bool valid() const { return half == 0 && size[0] > 0 && size[1] > 0 && size[2] > 0; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder&) const { return inputs[0]; }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        return isLinear(tensors[position], DataType::kFLOAT);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        const auto input = [&](int index) { return static_cast<const float*>(inputs[index]); };
        UniadPropagate a{};
        a.ref_pts = input(0);
        a.velocity = input(1);
        a.l2g_r_prev = input(2);
        a.l2g_t_prev = input(3);
        a.l2g_t = input(4);
        a.l2g_r_inv = input(5);
        a.time_delta = input(6);
        a.out = static_cast<float*>(outputs[0]);
        a.tracks = in[0].dims.d[0];
        std::memcpy(a.low, low, sizeof(low));
        std::memcpy(a.size, size, sizeof(size));
        return uniad_propagate(&a, stream);
    }
};
const Attribute Propagate::kAttributes[3] = {
    {"half", offsetof(Propagate, half), 1},
    {"low", offsetof(Propagate, low), 3, nvinfer1::PluginFieldType::kFLOAT32},
    {"size", offsetof(Propagate, size), 3, nvinfer1::PluginFieldType::kFLOAT32},
};

}  // namespace

nvinfer1::IPluginCreator* propagateCreator() {
    static Creator<Propagate> creator;
    return &creator;
}

}  // namespace uniad
