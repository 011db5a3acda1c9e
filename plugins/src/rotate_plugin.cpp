// UniADRotate.
#include "plugin.h"

namespace uniad {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

/// Inputs map (H*W,C) and float32 matrix (2,3), output (H*W,C); see UniadRotate.
struct Rotate : OneOutput<Rotate> {
    static constexpr const char* kName = "UniADRotate";
    static constexpr int kInputs = 2;
    static const Attribute kAttributes[3];
    int32_t half, height, width;

    bool valid() const { return height > 0 && width > 0; }

    DimsExprs outputDimensions(int, const DimsExprs* inputs, nvinfer1::IExprBuilder&) const { return inputs[0]; }
    bool supports(int position, const PluginTensorDesc* tensors) const {
        return isLinear(tensors[position], position == 1 ? DataType::kFLOAT : floatType(half));
    }
    int enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs, void* const* outputs,
                void*, cudaStream_t stream) const {
        UniadRotate a{};
        a.input = inputs[0];
        a.matrix = static_cast<const float*>(inputs[1]);
        a.out = outputs[0];
        a.height = height;
        a.width = width;
        a.channels = in[0].dims.d[1];
        return uniad_rotate(&a, half != 0 ? UNIAD_FLOAT16 : UNIAD_FLOAT32, stream);
    }
};
const Attribute Rotate::kAttributes[3] = {
    {"half", offsetof(Rotate, half), 1},
    {"height", offsetof(Rotate, height), 1},
    {"width", offsetof(Rotate, width), 1},
};

}  // namespace

nvinfer1::IPluginCreator* rotateCreator() {
    static Creator<Rotate> creator;
    return &creator;
}

}  // namespace uniad
