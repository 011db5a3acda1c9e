// UniADNormaliseImages.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Input (N,H,W,3), output (N,3,out_height,out_width); see UniadNormaliseImages. The float16 output is in
/// planes or channels-last (HWC8), as suits the convolution behind it.
struct NormaliseImages : OneOutput<NormaliseImages> {
    static constexpr const char* kName = "UniADNormaliseImages";
    static constexpr int kInputs = 1;
    static const Attribute kAttributes[4];
    int32_t half, out_height, out_width;
    float mean[3];

    bool valid() const { return out_height > 0 && out_width > 0; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const {
        DimsExprs out;
        out.nbDims = 4;
        out.d[0] = inputs[0].d[0];
        out.d[1] = builder.constant(3);
        out.d[2] = builder.constant(out_height);
        out.d[3] = builder.constant(out_width);
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        const PluginTensorDesc& tensor = tensors[position];
        if (position == 1 && half != 0) {
            return isChannelsLast(tensor) || isLinear(tensor, DataType::kHALF);
        }
        return isLinear(tensor, floatType(half));
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        const auto& dims = in[0].dims;
        if (dims.nbDims != 4 || dims.d[3] != 3) {
            return cudaErrorInvalidValue;
        }
        UniadNormaliseImages a{};
        a.input = inputs[0];
        a.out = outputs[0];
        a.images = dims.d[0];
        a.height = dims.d[1];
        a.width = dims.d[2];
        a.out_height = out_height;
        a.out_width = out_width;
        a.channels_last = isChannelsLast(out[0]);
        std::memcpy(a.mean, mean, sizeof(mean));
        return uniad_normalise_images(&a, half != 0 ? UNIAD_FLOAT16 : UNIAD_FLOAT32, stream);
    }
};
const Attribute NormaliseImages::kAttributes[4] = {
    {"half", offsetof(NormaliseImages, half), 1},
    {"out_height", offsetof(NormaliseImages, out_height), 1},
    {"out_width", offsetof(NormaliseImages, out_width), 1},
    {"mean", offsetof(NormaliseImages, mean), 3, nvinfer1::PluginFieldType::kFLOAT32},
};

}  // namespace

nvinfer1::IPluginCreator* normaliseImagesCreator() {
    static Creator<NormaliseImages> creator;
    return &creator;
}

}  // namespace uniad
