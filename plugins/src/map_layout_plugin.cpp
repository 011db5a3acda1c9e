// UniADFlattenMap, UniADFlattenLevels and UniADSampleMap. Their maps have the channels last (HWC8), so that a map is its
// rows; TensorRT's own layers for this write planes in between.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs kMaps maps (N,D,h,w) and, with several, embeds (N,kMaps,D), output (N,S,D), all float16; see UniadFlattenMaps.
template <int kMaps>
struct FlattenMaps : OneOutput<FlattenMaps<kMaps>> {
    static constexpr const char* kName = kMaps == 1 ? "UniADFlattenMap" : "UniADFlattenLevels";
    static constexpr bool kEmbeds = kMaps > 1;
    static constexpr int kInputs = kMaps + (kEmbeds ? 1 : 0);
    static const Attribute kAttributes[1];
    int32_t half;

    bool valid() const { return half == 1; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const {
        using nvinfer1::DimensionOperation;
        DimsExprs out;
        out.nbDims = 3;
        out.d[0] = inputs[0].d[0];
        out.d[1] = builder.operation(DimensionOperation::kPROD, *inputs[0].d[2], *inputs[0].d[3]);
        for (int map = 1; map < kMaps; ++map) {
            const auto* cells = builder.operation(DimensionOperation::kPROD, *inputs[map].d[2], *inputs[map].d[3]);
            out.d[1] = builder.operation(DimensionOperation::kSUM, *out.d[1], *cells);
        }
        out.d[2] = inputs[0].d[1];
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        return position < kMaps ? isChannelsLast(tensors[position]) : isLinear(tensors[position], DataType::kHALF);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        UniadFlattenMaps a{};
        a.maps = kMaps;
        a.images = in[0].dims.d[0];
        a.channels = in[0].dims.d[1];
        for (int map = 0; map < kMaps; ++map) {
            a.input[map] = inputs[map];
            a.cells[map] = in[map].dims.d[2] * in[map].dims.d[3];
        }
        a.embeds = kEmbeds ? inputs[kMaps] : nullptr;
        a.out = outputs[0];
        return uniad_flatten_maps(&a, stream);
    }
};
template <int kMaps>
const Attribute FlattenMaps<kMaps>::kAttributes[1] = {{"half", offsetof(FlattenMaps, half), 1}};

/// Inputs rows (H*W,D) and, kSampled, float32 positions (h,w,2); output (1,D,H,W) or (1,D,h,w). See UniadSampleMap.
template <bool kSampled>
struct SampleMap : OneOutput<SampleMap<kSampled>> {
    static constexpr const char* kName = kSampled ? "UniADSampleMap" : "UniADUnflattenMap";
    static constexpr int kInputs = kSampled ? 2 : 1;
    static const Attribute kAttributes[3];
    int32_t half, height, width;

    bool valid() const { return half == 1 && height > 0 && width > 0; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const {
        DimsExprs out;
        out.nbDims = 4;
        out.d[0] = builder.constant(1);
        out.d[1] = inputs[0].d[1];
        out.d[2] = kSampled ? inputs[kInputs - 1].d[0] : builder.constant(height);
        out.d[3] = kSampled ? inputs[kInputs - 1].d[1] : builder.constant(width);
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        const PluginTensorDesc& tensor = tensors[position];
        if (position == kInputs) {
            return isChannelsLast(tensor);
        }
        return isLinear(tensor, position == 0 ? DataType::kHALF : DataType::kFLOAT);
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        if (in[0].dims.d[0] != height * width) {
            return cudaErrorInvalidValue;
        }
        UniadSampleMap a{};
        a.input = inputs[0];
        a.positions = kSampled ? static_cast<const float*>(inputs[kInputs - 1]) : nullptr;
        a.out = outputs[0];
        a.height = height;
        a.width = width;
        a.points = out[0].dims.d[2] * out[0].dims.d[3];
        a.channels = in[0].dims.d[1];
        return uniad_sample_map(&a, stream);
    }
};
template <bool kSampled>
const Attribute SampleMap<kSampled>::kAttributes[3] = {
    {"half", offsetof(SampleMap, half), 1},
    {"height", offsetof(SampleMap, height), 1},
    {"width", offsetof(SampleMap, width), 1},
};

}  // namespace

nvinfer1::IPluginCreator* flattenMapCreator() {
    static Creator<FlattenMaps<1>> creator;
    return &creator;
}

nvinfer1::IPluginCreator* flattenLevelsCreator() {
    static Creator<FlattenMaps<4>> creator;
    return &creator;
}

nvinfer1::IPluginCreator* sampleMapCreator() {
    static Creator<SampleMap<true>> creator;
    return &creator;
}

nvinfer1::IPluginCreator* unflattenMapCreator() {
    static Creator<SampleMap<false>> creator;
    return &creator;
}

}  // namespace uniad
