// Makes the plugin from an ONNX node's attributes, or from a plan's serialized ones.
#pragma once

#include <array>
#include <optional>

#include "kv_cache_attention.hpp"

namespace qwenvl {

// The four attributes, each once, a 32- or 64-bit integer and of a value that the kernels know. Logs what is wrong.
std::optional<Attributes> read_attributes(nvinfer1::PluginFieldCollection const* fields) noexcept;

class KVCacheAttentionCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    KVCacheAttentionCreator();
    char const* getPluginName() const noexcept override { return kPluginName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    nvinfer1::IPluginV3* createPlugin(char const* name, nvinfer1::PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;

private:
    std::array<nvinfer1::PluginField, 4> fields_;
    nvinfer1::PluginFieldCollection collection_;
};

}  // namespace qwenvl
