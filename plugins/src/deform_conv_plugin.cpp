// UniADDeformConv.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs (N,C,H,W), the 27 channels of conv_offset, the packed weight, the bias float32 (O); see UniadDeformConv.
/// float16 feature maps are channels-last (HWC8), as the convolutions around them want them.
struct DeformConv : OneOutput<DeformConv> {
    static constexpr const char* kName = "UniADDeformConv";
    static constexpr int kInputs = 4;
    static const Attribute kAttributes[5];
    int32_t half, stride, padding, relu;
    int32_t layout;  // of the weight: UniadWeightLayout

    bool valid() const {
        const bool hopper = layout == UNIAD_LAYOUT_HOPPER;
        if (hopper && uniad_deform_conv_layout(1, UNIAD_HOPPER_CHANNELS, UNIAD_HOPPER_OUTPUTS) != layout) {
            std::fprintf(stderr,
                         "%s: the weight is packed for Hopper's kernel, which this library lacks for this GPU: build "
                         "the library with ARCH=sm_90a, or the engine again\n",
                         kName);
            return false;
        }
        return stride > 0 && padding >= 0 && (layout == UNIAD_LAYOUT_COMMON || (hopper && half != 0));
    }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder&) const {
        DimsExprs out = inputs[1];
        out.d[0] = inputs[0].d[0];
        out.d[1] = inputs[3].d[0];
        return out;
    }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        const PluginTensorDesc& tensor = tensors[position];
        if (position == 2) {
            return isLinear(tensor, floatType(half));
        }
        if (position == 3 || half == 0) {
            return isLinear(tensor, DataType::kFLOAT);
        }
        return isChannelsLast(tensor) || (position == 1 && isLinear(tensor, DataType::kHALF));
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        const auto& x = in[0].dims;
        const auto& offset_mask = in[1].dims;
        if (in[2].dims.nbDims != (half == 0 ? 3 : layout == UNIAD_LAYOUT_HOPPER ? 5 : 4)) {
            return cudaErrorInvalidValue;  // packed otherwise than `layout` says
        }
        UniadDeformConv a{};
        a.input = inputs[0];
        a.offset_mask = inputs[1];
        a.weight = inputs[2];
        a.bias = static_cast<const float*>(inputs[3]);
        a.out = outputs[0];
        a.batch = x.d[0];
        a.channels = x.d[1];
        a.height = x.d[2];
        a.width = x.d[3];
        a.out_channels = in[3].dims.d[0];
        a.out_height = offset_mask.d[2];
        a.out_width = offset_mask.d[3];
        a.stride = stride;
        a.padding = padding;
        a.relu = relu;
        const int pixels = a.out_height * a.out_width;
        const bool last = isChannelsLast(in[1]);
        const int channels = last ? (offset_mask.d[1] + 7) / 8 * 8 : offset_mask.d[1];
        a.offset_image = channels * pixels;
        a.offset_channel = last ? 1 : pixels;
        a.offset_pixel = last ? channels : 1;
        a.layout = layout;
        return uniad_deform_conv(&a, half != 0 ? UNIAD_FLOAT16 : UNIAD_FLOAT32, 0, stream);
    }
};
const Attribute DeformConv::kAttributes[5] = {
    {"half", offsetof(DeformConv, half), 1},
    {"stride", offsetof(DeformConv, stride), 1},
    {"padding", offsetof(DeformConv, padding), 1},
    {"relu", offsetof(DeformConv, relu), 1},
    {"layout", offsetof(DeformConv, layout), 1},
};

}  // namespace

nvinfer1::IPluginCreator* deformConvCreator() {
    static Creator<DeformConv> creator;
    return &creator;
}

}  // namespace uniad
