// The op as a TensorRT plugin. docs/plugin.md defines its tensors and attributes.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>

namespace qwenvl {

constexpr char kPluginName[] = "KVCacheAttention";
constexpr char kPluginVersion[] = "2";
constexpr char kPluginNamespace[] = "";  // where TensorRT's ONNX parser looks for an op that it does not know

// Attributes of the ONNX node.
struct Attributes {
    std::int32_t num_heads, num_kv_heads, head_dim, int8_cache;
};

// Counters of the kernels (Arguments::counters) in the GPU's memory, freed with this object.
class Counters {
public:
    Counters() = default;
    Counters(const Counters&) = delete;
    ~Counters();

    // Reserves them; without memory, or without a GPU, there are none, and decoding takes one kernel more.
    void reserve() noexcept;
    std::uint32_t* get() const { return memory_; }

private:
    std::uint32_t* memory_ = nullptr;
};

class KVCacheAttention final : public nvinfer1::IPluginV3,
                               public nvinfer1::IPluginV3OneCore,
                               public nvinfer1::IPluginV3OneBuildV2,
                               public nvinfer1::IPluginV3OneRuntime {
public:
    KVCacheAttention(const Attributes& attributes, nvinfer1::TensorRTPhase phase);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    char const* getPluginName() const noexcept override { return kPluginName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

    // IPluginV3OneBuildV2
    std::int32_t getNbOutputs() const noexcept override;
    std::int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, std::int32_t nbOutputs,
                                    nvinfer1::DataType const* inputTypes,
                                    std::int32_t nbInputs) const noexcept override;
    std::int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, std::int32_t nbInputs,
                                 nvinfer1::DimsExprs const* shapeInputs, std::int32_t nbShapeInputs,
                                 nvinfer1::DimsExprs* outputs, std::int32_t nbOutputs,
                                 nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(std::int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut,
                                   std::int32_t nbInputs, std::int32_t nbOutputs) noexcept override;
    std::int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t nbInputs,
                                 nvinfer1::DynamicPluginTensorDesc const* out,
                                 std::int32_t nbOutputs) noexcept override;
    std::size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, std::int32_t nbInputs,
                                 nvinfer1::DynamicPluginTensorDesc const* outputs,
                                 std::int32_t nbOutputs) const noexcept override;
    // None: with a declared alias TensorRT may keep a second cache and copy it at every call. A present output works
    // in place all the same, because whoever runs the engine binds it to the address of its past input.
    std::int32_t getAliasedInput(std::int32_t) noexcept override { return -1; }

    // IPluginV3OneRuntime
    std::int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, std::int32_t nbInputs,
                               nvinfer1::PluginTensorDesc const* out, std::int32_t nbOutputs) noexcept override;
    std::int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
                         void const* const* inputs, void* const* outputs, void* workspace,
                         cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    Attributes attributes_;
    nvinfer1::TensorRTPhase phase_;
    std::array<nvinfer1::PluginField, 4> fields_;
    nvinfer1::PluginFieldCollection collection_;
    Counters counters_;  // of an execution context's plugin alone: its calls never run at once
};

}  // namespace qwenvl
