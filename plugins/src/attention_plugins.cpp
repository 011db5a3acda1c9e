// UniADDeformableAttention and UniADCameraAttention.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginTensorDesc;

/// (height, width) of the maps; as many as are not 0.
struct SpatialShapes {
    int32_t sizes[UNIAD_MAX_LEVELS][2];

    int count() const {
        int levels = 0;
        while (levels < UNIAD_MAX_LEVELS && sizes[levels][0] > 0 && sizes[levels][1] > 0) {
            ++levels;
        }
        return levels;
    }
    void copy(int* heights, int* widths) const {
        for (int i = 0; i < UNIAD_MAX_LEVELS; ++i) {
            heights[i] = sizes[i][0];
            widths[i] = sizes[i][1];
        }
    }
};

/// Sets strides and logits where both inputs are one tensor (…,3,M,L,P): of each query's numbers the first two thirds
/// are offsets, the last are logits. `samples` is a query's M * L * P.
template <typename Arguments>
void takeJoint(Arguments& a, int samples, int32_t half) {
    a.offset_stride = a.logit_stride = 3 * samples;
    a.logits = static_cast<const char*>(a.offsets) + static_cast<size_t>(samples) * 2 * (half != 0 ? 2 : 4);
}

/// Inputs value (B,S,H,C), reference float32, offsets, logits; see UniadDeformableAttention, and takeJoint for `joint`.
struct DeformableAttention : OneOutput<DeformableAttention> {
    static constexpr const char* kName = "UniADDeformableAttention";
    static constexpr int kInputs = 4;
    static const Attribute kAttributes[6];
    int32_t half, num_queries, mean, first_head, joint;  // num_queries > 0: the flat-buffer rule
    SpatialShapes spatial_shapes;

    bool valid() const {
        const bool known = (joint == 0 || joint == 1) && first_head >= 0;
        return known && spatial_shapes.count() > 0 && !(num_queries > 0 && mean != 0);
    }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, IExprBuilder& builder) const {
        const DimsExprs& value = inputs[0];
        DimsExprs out;
        out.nbDims = mean != 0 ? 2 : 3;
        out.d[0] = value.d[0];
        out.d[out.nbDims - 2] = num_queries > 0 ? builder.constant(num_queries) : inputs[2].d[mean != 0 ? 0 : 1];
        const auto* heads = inputs[2].d[(mean != 0 ? 1 : 2) + joint];
        out.d[out.nbDims - 1] = builder.operation(DimensionOperation::kPROD, *heads, *value.d[3]);
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        return isLinear(tensors[position], position == 1 ? DataType::kFLOAT : floatType(half));
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        const auto& value = in[0].dims;
        const auto& reference = in[1].dims;
        const auto& offsets = in[2].dims;  // (B,Q,M,L,P,2), or (Q,M,B,P,2) with mean; joint: (…,Q,3,M,…,P)
        const auto* inner = offsets.d + (mean != 0 ? 1 : 2) + joint;  // M, L or B, P
        UniadDeformableAttention a{};
        a.value = inputs[0];
        a.reference = static_cast<const float*>(inputs[1]);
        a.offsets = inputs[2];
        a.logits = inputs[3];
        a.out = outputs[0];
        a.batch = value.d[0];
        a.cells = value.d[1];
        a.heads = inner[0];
        a.value_heads = value.d[2];
        a.first_head = first_head;
        a.channels = value.d[3];
        a.source_queries = offsets.d[mean != 0 ? 0 : 1];
        a.queries = num_queries > 0 ? num_queries : a.source_queries;
        a.levels = mean != 0 ? 1 : inner[1];
        a.points = inner[2];
        a.reference_size = reference.d[reference.nbDims - 1];
        a.maps = spatial_shapes.count();
        spatial_shapes.copy(a.height, a.width);
        a.grid_width = num_queries == 0 && a.queries == a.height[0] * a.width[0] ? a.width[0] : 0;
        a.flat_buffer = num_queries > 0;
        a.mean = mean;
        if (joint != 0) {
            takeJoint(a, inner[0] * inner[1] * inner[2], half);
        }
        return uniad_deformable_attention(&a, half != 0 ? UNIAD_FLOAT16 : UNIAD_FLOAT32, 0, stream);
    }
};
const Attribute DeformableAttention::kAttributes[6] = {
    {"half", offsetof(DeformableAttention, half), 1},
    {"num_queries", offsetof(DeformableAttention, num_queries), 1},
    {"mean", offsetof(DeformableAttention, mean), 1},
    {"first_head", offsetof(DeformableAttention, first_head), 1},
    {"joint", offsetof(DeformableAttention, joint), 1},
    {"spatial_shapes", offsetof(DeformableAttention, spatial_shapes), 2 * UNIAD_MAX_LEVELS},
};

/// Inputs value (N,S,H,C), reference float32, visible int32, offsets, logits; see UniadCameraAttention, and takeJoint for
/// `joint`.
struct CameraAttention : OneOutput<CameraAttention> {
    static constexpr const char* kName = "UniADCameraAttention";
    static constexpr int kInputs = 5;
    static const Attribute kAttributes[5];
    int32_t half, grid_width, first_head, joint;
    SpatialShapes spatial_shapes;

    bool valid() const { return spatial_shapes.count() > 0 && first_head >= 0 && (joint == 0 || joint == 1); }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, IExprBuilder& builder) const {
        const DimsExprs& offsets = inputs[3];
        DimsExprs out;
        out.nbDims = 2;
        out.d[0] = offsets.d[0];
        out.d[1] = builder.operation(DimensionOperation::kPROD, *offsets.d[1 + joint], *inputs[0].d[3]);
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        const DataType type = position == 1 ? DataType::kFLOAT : position == 2 ? DataType::kINT32 : floatType(half);
        return isLinear(tensors[position], type);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        const auto& value = in[0].dims;
        const auto& visible = in[2].dims;  // (N,Q,Z)
        const auto* inner = in[3].dims.d + 1 + joint;  // M, L, P of (Q,M,L,P,2); joint: (Q,3,M,L,P)
        UniadCameraAttention a{};
        a.value = inputs[0];
        a.reference = static_cast<const float*>(inputs[1]);
        a.visible = static_cast<const int*>(inputs[2]);
        a.offsets = inputs[3];
        a.logits = inputs[4];
        a.out = outputs[0];
        a.cameras = value.d[0];
        a.cells = value.d[1];
        a.heads = inner[0];
        a.channels = value.d[3];
        a.value_heads = value.d[2];
        a.first_head = first_head;
        a.queries = visible.d[1];
        a.anchors = visible.d[2];
        a.levels = inner[1];
        a.points = inner[2];
        spatial_shapes.copy(a.height, a.width);
        a.grid_width = grid_width;
        if (joint != 0) {
            takeJoint(a, inner[0] * inner[1] * inner[2], half);
        }
        return uniad_camera_attention(&a, half != 0 ? UNIAD_FLOAT16 : UNIAD_FLOAT32, 0, stream);
    }
};
const Attribute CameraAttention::kAttributes[5] = {
    {"half", offsetof(CameraAttention, half), 1},
    {"grid_width", offsetof(CameraAttention, grid_width), 1},
    {"first_head", offsetof(CameraAttention, first_head), 1},
    {"joint", offsetof(CameraAttention, joint), 1},
    {"spatial_shapes", offsetof(CameraAttention, spatial_shapes), 2 * UNIAD_MAX_LEVELS},
};

}  // namespace

nvinfer1::IPluginCreator* deformableAttentionCreator() {
    static Creator<DeformableAttention> creator;
    return &creator;
}

nvinfer1::IPluginCreator* cameraAttentionCreator() {
    static Creator<CameraAttention> creator;
    return &creator;
}

}  // namespace uniad
