#include "kv_cache_attention.hpp"

#include <cuda_runtime_api.h>

#include <new>
#include <string>

#include "../kernels/c_api.h"
#include "log.hpp"
#include "shapes.hpp"
#include "tensors.hpp"

namespace qwenvl {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

Counters::~Counters() {
    if (memory_ != nullptr) cudaFree(memory_);
}

void Counters::reserve() noexcept {
    void* memory = nullptr;
    const std::size_t bytes = qwenvl_kv_cache_attention_counters() * sizeof *memory_;
    if (cudaMalloc(&memory, bytes) == cudaSuccess) {
        if (cudaMemset(memory, 0, bytes) == cudaSuccess && cudaStreamSynchronize(nullptr) == cudaSuccess)
            memory_ = static_cast<std::uint32_t*>(memory);
        else
            cudaFree(memory);
    }
    if (memory_ == nullptr) cudaGetLastError();  // the next launch must not report it
}

KVCacheAttention::KVCacheAttention(const Attributes& attributes, nvinfer1::TensorRTPhase phase)
    : attributes_(attributes),
      phase_(phase),
      fields_{PluginField("num_heads", &attributes_.num_heads, PluginFieldType::kINT32, 1),
              PluginField("num_kv_heads", &attributes_.num_kv_heads, PluginFieldType::kINT32, 1),
              PluginField("head_dim", &attributes_.head_dim, PluginFieldType::kINT32, 1),
              PluginField("int8_cache", &attributes_.int8_cache, PluginFieldType::kINT32, 1)},
      collection_{static_cast<std::int32_t>(fields_.size()), fields_.data()} {}

nvinfer1::IPluginCapability* KVCacheAttention::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* KVCacheAttention::clone() noexcept {
    return new (std::nothrow) KVCacheAttention(attributes_, phase_);
}

std::int32_t KVCacheAttention::getNbOutputs() const noexcept { return output_count(attributes_.int8_cache); }

std::int32_t KVCacheAttention::getOutputDataTypes(DataType* outputTypes, std::int32_t nbOutputs,
                                                  DataType const* inputTypes, std::int32_t nbInputs) const noexcept {
    if (!has_tensor_counts(attributes_, nbInputs, nbOutputs)) return -1;
    outputTypes[kOut] = inputTypes[kQkv];
    for (int i = kPresentKey; i < nbOutputs; ++i) outputTypes[i] = inputTypes[past_of(i)];
    return 0;
}

std::int32_t KVCacheAttention::getOutputShapes(nvinfer1::DimsExprs const* inputs, std::int32_t nbInputs,
                                               nvinfer1::DimsExprs const*, std::int32_t, nvinfer1::DimsExprs* outputs,
                                               std::int32_t nbOutputs, nvinfer1::IExprBuilder& builder) noexcept {
    if (!has_tensor_counts(attributes_, nbInputs, nbOutputs)) return -1;
    outputs[kOut] = inputs[kQkv];
    outputs[kOut].d[2] = builder.constant(std::int64_t{attributes_.num_heads} * attributes_.head_dim);
    for (int i = kPresentKey; i < nbOutputs; ++i) outputs[i] = inputs[past_of(i)];
    return 0;
}

bool KVCacheAttention::supportsFormatCombination(std::int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut,
                                                 std::int32_t nbInputs, std::int32_t nbOutputs) noexcept {
    if (!has_tensor_counts(attributes_, nbInputs, nbOutputs)) return false;
    return inOut[pos].desc.format == nvinfer1::TensorFormat::kLINEAR &&
           is_type_of(attributes_, pos < nbInputs ? pos : input_like(pos - nbInputs), inOut[pos].desc.type,
                      inOut[kQkv].desc.type);
}

std::int32_t KVCacheAttention::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t nbInputs,
                                               nvinfer1::DynamicPluginTensorDesc const*, std::int32_t) noexcept {
    std::array<nvinfer1::Dims, kInt8CacheInputs> shapes{};
    for (int i = 0; i < nbInputs && i < kInt8CacheInputs; ++i) shapes[i] = in[i].desc.dims;
    return check_shapes(attributes_, shapes.data(), nbInputs) ? 0 : -1;
}

std::size_t KVCacheAttention::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const*, std::int32_t,
                                               nvinfer1::DynamicPluginTensorDesc const*, std::int32_t) const noexcept {
    return qwenvl_kv_cache_attention_workspace(attributes_.head_dim);
}

std::int32_t KVCacheAttention::onShapeChange(nvinfer1::PluginTensorDesc const* in, std::int32_t nbInputs,
                                             nvinfer1::PluginTensorDesc const*, std::int32_t) noexcept {
    std::array<nvinfer1::Dims, kInt8CacheInputs> shapes{};
    for (int i = 0; i < nbInputs && i < kInt8CacheInputs; ++i) shapes[i] = in[i].dims;
    return check_shapes(attributes_, shapes.data(), nbInputs) ? 0 : -1;
}

std::int32_t KVCacheAttention::enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const*,
                                       void const* const* inputs, void* const* outputs, void* workspace,
                                       cudaStream_t stream) noexcept {
    // The builder times the plugin on buffers of its own, which differ; then only the time counts. In an engine two
    // addresses would mean that the tokens before this call are missing from the present cache.
    for (int i = kPresentKey; phase_ == nvinfer1::TensorRTPhase::kRUNTIME && i < getNbOutputs(); ++i)
        if (outputs[i] != inputs[past_of(i)]) {
            log_error(
                "KVCacheAttention got a present cache that is not the past one's memory; bind both to the same "
                "address");
            return -1;
        }
    const bool int8 = attributes_.int8_cache != 0;
    Arguments args{};
    const auto& qkv = inputDesc[kQkv].dims;
    args.sizes = {static_cast<std::int32_t>(qkv.d[0]),
                  static_cast<std::int32_t>(qkv.d[1]),
                  attributes_.num_heads,
                  attributes_.num_kv_heads,
                  attributes_.head_dim,
                  static_cast<std::int32_t>(inputDesc[kPastKey].dims.d[2])};
    args.float_type = inputDesc[kQkv].type == DataType::kHALF ? FloatType::kHalf : FloatType::kBFloat16;
    args.int8_cache = attributes_.int8_cache;
    args.qkv = inputs[kQkv];
    args.rope_cos = static_cast<const float*>(inputs[kRopeCos]);
    args.rope_sin = static_cast<const float*>(inputs[kRopeSin]);
    args.write_indices = static_cast<const std::int64_t*>(inputs[kWriteIndices]);
    args.query_scale = static_cast<const float*>(inputs[kQueryScale]);
    args.key = outputs[kPresentKey];
    args.value = outputs[kPresentValue];
    args.key_scale = int8 ? static_cast<float*>(outputs[kPresentKeyScale]) : nullptr;
    args.value_scale = int8 ? static_cast<float*>(outputs[kPresentValueScale]) : nullptr;
    args.out = outputs[kOut];
    args.workspace = workspace;
    args.counters = counters_.get();
    const int status = qwenvl_kv_cache_attention(&args, stream);
    if (status != cudaSuccess)
        log_error(std::string("KVCacheAttention could not be launched: ") +
                  cudaGetErrorString(static_cast<cudaError_t>(status)));
    return status;
}

nvinfer1::IPluginV3* KVCacheAttention::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    auto* attached = new (std::nothrow) KVCacheAttention(attributes_, phase_);
    if (attached != nullptr) attached->counters_.reserve();
    return attached;
}

nvinfer1::PluginFieldCollection const* KVCacheAttention::getFieldsToSerialize() noexcept { return &collection_; }

}  // namespace qwenvl
