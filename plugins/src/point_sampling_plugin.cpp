// UniADPointSampling.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs lidar2img (N,4,4), x (B), y (B), z (Z); outputs reference_points_cam (N,B,Z,2) and visible int32 (N,B,Z); see
/// UniadPointSampling. All else is float32 in every network, so that `half` stays 0.
struct PointSampling {
    static constexpr const char* kName = "UniADPointSampling";
    static constexpr int kInputs = 4, kOutputs = 2;
    static const Attribute kAttributes[4];
    int32_t half;
    float width, height, min_depth;

    bool valid() const { return half == 0 && width > 0 && height > 0 && min_depth > 0; }
    DataType outputType(int output) const { return output == 0 ? DataType::kFLOAT : DataType::kINT32; }

    DimsExprs outputDimensions(int output, const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const {
        DimsExprs out;
        out.nbDims = output == 0 ? 4 : 3;
        out.d[0] = inputs[0].d[0];
        out.d[1] = inputs[1].d[0];
        out.d[2] = inputs[3].d[0];
        if (output == 0) {
            out.d[3] = builder.constant(2);
        }
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        return isLinear(tensors[position], position == 5 ? DataType::kINT32 : DataType::kFLOAT);
    }
    size_t workspace(const PluginTensorDesc*) const { return 0; }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        UniadPointSampling a{};
        a.lidar2img = static_cast<const float*>(inputs[0]);
        a.x = static_cast<const float*>(inputs[1]);
        a.y = static_cast<const float*>(inputs[2]);
        a.z = static_cast<const float*>(inputs[3]);
        a.reference = static_cast<float*>(outputs[0]);
        a.visible = static_cast<int*>(outputs[1]);
        a.cameras = in[0].dims.d[0];
        a.cells = in[1].dims.d[0];
        a.anchors = in[3].dims.d[0];
        a.width = width;
        a.height = height;
        a.min_depth = min_depth;
        return uniad_point_sampling(&a, stream);
    }
};
constexpr auto kFloat = nvinfer1::PluginFieldType::kFLOAT32;
const Attribute PointSampling::kAttributes[4] = {
    {"half", offsetof(PointSampling, half), 1},
    {"width", offsetof(PointSampling, width), 1, kFloat},
    {"height", offsetof(PointSampling, height), 1, kFloat},
    {"min_depth", offsetof(PointSampling, min_depth), 1, kFloat},
};

}  // namespace

nvinfer1::IPluginCreator* pointSamplingCreator() {
    static Creator<PointSampling> creator;
    return &creator;
}

}  // namespace uniad
