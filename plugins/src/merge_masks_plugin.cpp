// UniADMergeMasks.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs masks (N,P), scores (N), labels int32 (N); outputs lane int32 (C,P) and lane_score (C,P); see
/// UniadMergeMasks. All else is float32 in every network, so that `half` stays 0.
struct MergeMasks {
    static constexpr const char* kName = "UniADMergeMasks";
    static constexpr int kInputs = 3, kOutputs = 2;
    static const Attribute kAttributes[3];
    int32_t half, classes;
    float quality_thresh;

    bool valid() const { return half == 0 && classes > 0 && classes <= UNIAD_MERGE_MAX_CLASSES; }
    DataType outputType(int output) const { return output == 0 ? DataType::kINT32 : DataType::kFLOAT; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const {
        DimsExprs out = inputs[0];
        out.d[0] = builder.constant(classes);
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        return isLinear(tensors[position], position == 2 || position == 3 ? DataType::kINT32 : DataType::kFLOAT);
    }
    size_t workspace(const PluginTensorDesc* in) const {
        return uniad_merge_masks_workspace(in[0].dims.d[0], in[0].dims.d[1], classes);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void* workspace, cudaStream_t stream) const {
        UniadMergeMasks a{};
        a.masks = static_cast<const float*>(inputs[0]);
        a.scores = static_cast<const float*>(inputs[1]);
        a.labels = static_cast<const int*>(inputs[2]);
        a.lane = static_cast<int*>(outputs[0]);
        a.lane_score = static_cast<float*>(outputs[1]);
        a.workspace = workspace;
        a.count = in[0].dims.d[0];
        a.pixels = in[0].dims.d[1];
        a.classes = classes;
        a.quality_thresh = quality_thresh;
        return uniad_merge_masks(&a, stream);
    }
};
const Attribute MergeMasks::kAttributes[3] = {
    {"half", offsetof(MergeMasks, half), 1},
    {"classes", offsetof(MergeMasks, classes), 1},
    {"quality_thresh", offsetof(MergeMasks, quality_thresh), 1, nvinfer1::PluginFieldType::kFLOAT32},
};

}  // namespace

nvinfer1::IPluginCreator* mergeMasksCreator() {
    static Creator<MergeMasks> creator;
    return &creator;
}

}  // namespace uniad
