// How TensorRT finds the plugins. The library has no undefined symbol of libnvinfer: it is handed the registry.
#include "plugin.h"

namespace {

bool isRegistered(nvinfer1::IPluginRegistry& registry, nvinfer1::IPluginCreator& creator) {
#if NV_TENSORRT_MAJOR >= 10
    return registry.getCreator(creator.getPluginName(), creator.getPluginVersion(), "") != nullptr;
#else
    return registry.getPluginCreator(creator.getPluginName(), creator.getPluginVersion(), "") != nullptr;
#endif
}

}  // namespace

/// Registers the plugins with what getPluginRegistry() of the TensorRT in use returns. Plugins that are there already
/// stay. The number of plugins that are registered then, or -1.
extern "C" UNIAD_API int uniad_register_plugins(void* registry) {
    if (registry == nullptr) {
        return -1;
    }
    auto* plugins = static_cast<nvinfer1::IPluginRegistry*>(registry);
    int count = 0;
    for (nvinfer1::IPluginCreator* creator :
         {uniad::afterCreator(), uniad::deformableAttentionCreator(), uniad::cameraAttentionCreator(),
          uniad::deformConvCreator(), uniad::mergeMasksCreator(), uniad::pointSamplingCreator(),
          uniad::propagateCreator(), uniad::rotateCreator(), uniad::memoryAttentionCreator(),
          uniad::attentionMasksCreator(), uniad::narrowConvCreator(), uniad::expandConvCreator(),
          uniad::occupancyCreator(), uniad::addLayerNormCreator(), uniad::layerNormCreator(),
          uniad::normaliseImagesCreator(), uniad::flattenMapCreator(), uniad::flattenLevelsCreator(),
          uniad::sampleMapCreator(), uniad::unflattenMapCreator(), uniad::multiheadAttentionCreator(),
          uniad::maskedMultiheadAttentionCreator(), uniad::temporalInputsCreator(), uniad::stemCreator()}) {
        if (!isRegistered(*plugins, *creator) && !plugins->registerCreator(*creator, "")) {
            return -1;
        }
        ++count;
    }
    return count;
}
