#include "creator.hpp"

#include <cstring>
#include <new>
#include <string>

#include "../kernels/validity.hpp"
#include "log.hpp"

namespace qwenvl {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

struct Attribute {
    const char* name;
    std::int32_t Attributes::*member;
};
constexpr Attribute kAttributes[] = {{"num_heads", &Attributes::num_heads},
                                     {"num_kv_heads", &Attributes::num_kv_heads},
                                     {"head_dim", &Attributes::head_dim},
                                     {"int8_cache", &Attributes::int8_cache}};

std::optional<std::int64_t> integer(const PluginField& field) {
    if (field.data == nullptr || field.length != 1) return std::nullopt;
    if (field.type == PluginFieldType::kINT32) return *static_cast<const std::int32_t*>(field.data);
    if (field.type == PluginFieldType::kINT64) return *static_cast<const std::int64_t*>(field.data);
    return std::nullopt;
}

const PluginField* find(nvinfer1::PluginFieldCollection const* fields, const char* name) {
    for (int i = 0; fields != nullptr && i < fields->nbFields; ++i)
        if (std::strcmp(fields->fields[i].name, name) == 0) return &fields->fields[i];
    return nullptr;
}

// The objection to the attributes' values, or "".
std::string objection(const Attributes& a) {
    if (!is_head_dim(a.head_dim))
        return "head_dim is " + std::to_string(a.head_dim) + "; it must be 64, 72, 80, 96, 104 or 128";
    if (a.num_heads <= 0 || a.num_kv_heads <= 0 || a.num_heads % a.num_kv_heads != 0)
        return "num_heads is " + std::to_string(a.num_heads) + ", which is no multiple of num_kv_heads, " +
               std::to_string(a.num_kv_heads);
    if (a.int8_cache != 0 && a.int8_cache != 1)
        return "int8_cache is " + std::to_string(a.int8_cache) + "; it must be 0 or 1";
    return "";
}

}  // namespace

std::optional<Attributes> read_attributes(nvinfer1::PluginFieldCollection const* fields) noexcept try {
    Attributes attributes{};
    for (const Attribute& attribute : kAttributes) {
        const PluginField* field = find(fields, attribute.name);
        const auto value = field != nullptr ? integer(*field) : std::nullopt;
        if (!value || *value != static_cast<std::int32_t>(*value)) {
            log_error(std::string("KVCacheAttention needs the attribute ") + attribute.name + ", one integer");
            return std::nullopt;
        }
        attributes.*attribute.member = static_cast<std::int32_t>(*value);
    }
    const std::string wrong = objection(attributes);
    if (wrong.empty()) return attributes;
    log_error("KVCacheAttention: " + wrong);
    return std::nullopt;
} catch (const std::bad_alloc&) {
    return std::nullopt;
}

KVCacheAttentionCreator::KVCacheAttentionCreator()
    : collection_{static_cast<std::int32_t>(fields_.size()), fields_.data()} {
    for (std::size_t i = 0; i < fields_.size(); ++i)
        fields_[i] = PluginField(kAttributes[i].name, nullptr, PluginFieldType::kINT32, 1);
}

nvinfer1::IPluginV3* KVCacheAttentionCreator::createPlugin(char const*, nvinfer1::PluginFieldCollection const* fields,
                                                           nvinfer1::TensorRTPhase phase) noexcept {
    const auto attributes = read_attributes(fields);
    return attributes ? new (std::nothrow) KVCacheAttention(*attributes, phase) : nullptr;
}

}  // namespace qwenvl
