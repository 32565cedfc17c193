#include "shapes.hpp"

#include <new>
#include <string>

#include "log.hpp"
#include "tensors.hpp"

namespace qwenvl {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr const char* kInputNames[kInt8CacheInputs] = {"qkv",           "past_key",    "past_value",
                                                       "rope_cos",      "rope_sin",    "write_indices",
                                                       "query_scale",   "key_scale",   "value_scale"};

std::string text(const Dims& shape) {
    std::string list;
    for (int i = 0; i < shape.nbDims; ++i) list += (i > 0 ? ", " : "") + std::to_string(shape.d[i]);
    return "[" + list + "]";
}

bool agree(const Dims& shape, const Dims& expected) {
    if (shape.nbDims != expected.nbDims) return false;
    for (int i = 0; i < shape.nbDims; ++i)
        if (shape.d[i] >= 0 && expected.d[i] >= 0 && shape.d[i] != expected.d[i]) return false;
    return true;
}

Dims expected_shape(const Attributes& a, int input, std::int64_t batch, std::int64_t tokens, std::int64_t capacity) {
    switch (input) {
        case kQkv:
            return {3, {batch, tokens, (std::int64_t{a.num_heads} + 2 * a.num_kv_heads) * a.head_dim}};
        case kPastKey:
        case kPastValue:
            return {4, {batch, a.num_kv_heads, capacity, a.head_dim}};
        case kRopeCos:
        case kRopeSin:
            return {3, {batch, tokens, a.head_dim / 2}};
        case kQueryScale:
            return {2, {batch, tokens}};
        case kWriteIndices:
            return {1, {batch}};
        default:
            return {3, {batch, a.num_kv_heads, capacity}};
    }
}

}  // namespace

bool has_tensor_counts(const Attributes& attributes, int inputs, int outputs) noexcept {
    return inputs == input_count(attributes.int8_cache) && outputs == output_count(attributes.int8_cache);
}

int input_like(int output) noexcept { return output == kOut ? kQkv : past_of(output); }

bool is_type_of(const Attributes& attributes, int input, DataType type, DataType qkv) noexcept {
    switch (input) {
        case kQkv:
            return type == DataType::kHALF || type == DataType::kBF16;
        case kPastKey:
        case kPastValue:
            return type == (attributes.int8_cache ? DataType::kINT8 : qkv);
        case kWriteIndices:
            return type == DataType::kINT64;
        default:
            return type == DataType::kFLOAT;
    }
}

bool check_shapes(const Attributes& attributes, const Dims* inputs, int count) noexcept try {
    if (count != input_count(attributes.int8_cache)) {
        log_error("KVCacheAttention has " + std::to_string(count) +
                  " inputs; with int8_cache = " + std::to_string(attributes.int8_cache) + " it takes " +
                  std::to_string(input_count(attributes.int8_cache)));
        return false;
    }
    const Dims &qkv = inputs[kQkv], &past = inputs[kPastKey];
    const std::int64_t batch = qkv.nbDims == 3 ? qkv.d[0] : -1, tokens = qkv.nbDims == 3 ? qkv.d[1] : -1;
    const std::int64_t capacity = past.nbDims == 4 ? past.d[2] : -1;
    for (int i = 0; i < count; ++i) {
        const Dims expected = expected_shape(attributes, i, batch, tokens, capacity);
        if (agree(inputs[i], expected)) continue;
        log_error(std::string("KVCacheAttention: ") + kInputNames[i] + " has shape " + text(inputs[i]) +
                  "; it must be " + text(expected));
        return false;
    }
    return true;
} catch (const std::bad_alloc&) {
    return false;
}

}  // namespace qwenvl
