// IPluginV2DynamicExt once for all operations. An operation is a struct of attributes, int32 or float, with:
//   static constexpr const char* kName; static constexpr int kInputs, kOutputs;
//   static const Attribute kAttributes[kAttributeCount];
//   bool valid() const;                                                  // are the attributes possible?
//   DataType outputType(int output) const;
//   DimsExprs outputDimensions(int output, const DimsExprs* inputs, IExprBuilder&) const;
//   bool supports(int position, const PluginTensorDesc* tensors) const;  // all inputs, then the outputs
//   size_t workspace(const PluginTensorDesc* in) const;                  // bytes of scratch memory
//   int enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
//               void* const* outputs, void* workspace, cudaStream_t) const;
// and an attribute `half`: the network's type is float16, else float32.
#pragma once

#include <NvInferRuntime.h>
#include <NvInferVersion.h>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels.h"

namespace uniad {

/// `count` consecutive numbers of an operation, under the name that the creator's field has.
struct Attribute {
    const char* name;
    size_t offset;
    int32_t count;
    nvinfer1::PluginFieldType type = nvinfer1::PluginFieldType::kINT32;  // or kFLOAT32, of the same size
};

inline bool isLinear(const nvinfer1::PluginTensorDesc& tensor, nvinfer1::DataType type) {
    return tensor.type == type && tensor.format == nvinfer1::TensorFormat::kLINEAR;
}

/// float16 whose channels lie side by side, padded to eights.
inline bool isChannelsLast(const nvinfer1::PluginTensorDesc& tensor) {
    return tensor.type == nvinfer1::DataType::kHALF && tensor.format == nvinfer1::TensorFormat::kHWC8;
}

inline nvinfer1::DataType floatType(int32_t half) {
    return half != 0 ? nvinfer1::DataType::kHALF : nvinfer1::DataType::kFLOAT;
}

/// What most operations have: one output of the network's type, no scratch memory. Needs the attribute `half`.
template <typename Op>
struct OneOutput {
    static constexpr int kOutputs = 1;
    nvinfer1::DataType outputType(int) const { return floatType(static_cast<const Op*>(this)->half); }
    size_t workspace(const nvinfer1::PluginTensorDesc*) const { return 0; }
};

template <typename Op>
class Plugin final : public nvinfer1::IPluginV2DynamicExt {
public:
    explicit Plugin(const Op& op) : op_(op) {}

    // --- the operation
    int32_t getNbOutputs() const noexcept override { return Op::kOutputs; }
    nvinfer1::DimsExprs getOutputDimensions(int32_t output, const nvinfer1::DimsExprs* inputs, int32_t,
                                            nvinfer1::IExprBuilder& builder) noexcept override {
        return op_.outputDimensions(output, inputs, builder);
    }
    nvinfer1::DataType getOutputDataType(int32_t output, const nvinfer1::DataType*, int32_t) const noexcept override {
        return op_.outputType(output);
    }
    bool supportsFormatCombination(int32_t position, const nvinfer1::PluginTensorDesc* tensors, int32_t inputs,
                                   int32_t outputs) noexcept override {
        return inputs == Op::kInputs && outputs == Op::kOutputs && op_.supports(position, tensors);
    }
    int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                    const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        const int error = op_.enqueue(in, out, inputs, outputs, workspace, stream);
        if (error != 0) {
            std::fprintf(stderr, "%s: %s\n", Op::kName, uniad_error_string(error));
        }
        return error;
    }
    size_t getWorkspaceSize(const nvinfer1::PluginTensorDesc* in, int32_t, const nvinfer1::PluginTensorDesc*,
                            int32_t) const noexcept override {
        return op_.workspace(in);
    }

    // --- what TensorRT asks of every plugin
    const char* getPluginType() const noexcept override { return Op::kName; }
    const char* getPluginVersion() const noexcept override { return "1"; }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    void configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t, const nvinfer1::DynamicPluginTensorDesc*,
                         int32_t) noexcept override {}
    nvinfer1::IPluginV2DynamicExt* clone() const noexcept override {
        auto* copy = new (std::nothrow) Plugin(op_);
        if (copy != nullptr) {
            copy->setPluginNamespace(namespace_.c_str());
        }
        return copy;
    }
    void destroy() noexcept override { delete this; }
    void setPluginNamespace(const char* name) noexcept override { namespace_ = name; }
    const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

    struct Stored {
        int32_t version, size;
        Op op;
    };
    size_t getSerializationSize() const noexcept override { return sizeof(Stored); }
    void serialize(void* buffer) const noexcept override {
        const Stored stored{UNIAD_PLUGINS_VERSION, static_cast<int32_t>(sizeof(Op)), op_};
        std::memcpy(buffer, &stored, sizeof(stored));
    }

private:
    static_assert(std::is_trivially_copyable_v<Op>, "attributes are stored as bytes");
    Op op_;
    std::string namespace_;
};

template <typename Op>
class Creator final : public nvinfer1::IPluginCreator {
public:
    Creator() {
        for (const Attribute& attribute : Op::kAttributes) {
            fields_.emplace_back(attribute.name, nullptr, attribute.type, attribute.count);
        }
        collection_.nbFields = static_cast<int32_t>(fields_.size());
        collection_.fields = fields_.data();
    }
    const char* getPluginName() const noexcept override { return Op::kName; }
    const char* getPluginVersion() const noexcept override { return "1"; }
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    void setPluginNamespace(const char* name) noexcept override { namespace_ = name; }
    const char* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

    /// Fields that are not given stay 0; unknown names, other types and too many numbers are refused.
    nvinfer1::IPluginV2* createPlugin(const char*, const nvinfer1::PluginFieldCollection* given) noexcept override {
        Op op{};
        for (int32_t i = 0; i < given->nbFields; ++i) {
            const nvinfer1::PluginField& field = given->fields[i];
            const Attribute* match = nullptr;
            for (const Attribute& attribute : Op::kAttributes) {
                match = std::strcmp(attribute.name, field.name) == 0 ? &attribute : match;
            }
            if (match == nullptr || field.type != match->type || field.length > match->count) {
                std::fprintf(stderr, "%s: field %s is unknown, of another type, or more than %d numbers\n", Op::kName,
                             field.name, match == nullptr ? 0 : match->count);
                return nullptr;
            }
            std::memcpy(reinterpret_cast<char*>(&op) + match->offset, field.data, field.length * sizeof(int32_t));
        }
        return make(op);
    }
    nvinfer1::IPluginV2* deserializePlugin(const char*, const void* data, size_t length) noexcept override {
        typename Plugin<Op>::Stored stored;
        if (length != sizeof(stored)) {
            std::fprintf(stderr, "%s: the engine was built with another version of the plugins\n", Op::kName);
            return nullptr;
        }
        std::memcpy(&stored, data, sizeof(stored));
        if (stored.version != UNIAD_PLUGINS_VERSION || stored.size != static_cast<int32_t>(sizeof(Op))) {
            std::fprintf(stderr, "%s: the engine was built with version %d of the plugins, this is %d\n", Op::kName,
                         stored.version, UNIAD_PLUGINS_VERSION);
            return nullptr;
        }
        return make(stored.op);
    }

private:
    nvinfer1::IPluginV2* make(const Op& op) const noexcept {
        if (!op.valid()) {
            std::fprintf(stderr, "%s: impossible attributes\n", Op::kName);
            return nullptr;
        }
        auto* plugin = new (std::nothrow) Plugin<Op>(op);
        if (plugin != nullptr) {
            plugin->setPluginNamespace(namespace_.c_str());
        }
        return plugin;
    }
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
    std::string namespace_;
};

/// The creators of the *_plugin.cpp and attention_plugins.cpp.
nvinfer1::IPluginCreator* afterCreator();
nvinfer1::IPluginCreator* attentionMasksCreator();
nvinfer1::IPluginCreator* deformableAttentionCreator();
nvinfer1::IPluginCreator* cameraAttentionCreator();
nvinfer1::IPluginCreator* deformConvCreator();
nvinfer1::IPluginCreator* expandConvCreator();
nvinfer1::IPluginCreator* memoryAttentionCreator();
nvinfer1::IPluginCreator* flattenMapCreator();
nvinfer1::IPluginCreator* flattenLevelsCreator();
nvinfer1::IPluginCreator* sampleMapCreator();
nvinfer1::IPluginCreator* unflattenMapCreator();
nvinfer1::IPluginCreator* mergeMasksCreator();
nvinfer1::IPluginCreator* multiheadAttentionCreator();
nvinfer1::IPluginCreator* maskedMultiheadAttentionCreator();
nvinfer1::IPluginCreator* narrowConvCreator();
nvinfer1::IPluginCreator* occupancyCreator();
nvinfer1::IPluginCreator* pointSamplingCreator();
nvinfer1::IPluginCreator* propagateCreator();
nvinfer1::IPluginCreator* rotateCreator();
nvinfer1::IPluginCreator* addLayerNormCreator();
nvinfer1::IPluginCreator* layerNormCreator();
nvinfer1::IPluginCreator* normaliseImagesCreator();
nvinfer1::IPluginCreator* stemCreator();
nvinfer1::IPluginCreator* temporalInputsCreator();

}  // namespace uniad
