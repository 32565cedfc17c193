// Tensor types and shapes that the op takes.
#pragma once

#include <NvInferRuntime.h>

#include "kv_cache_attention.hpp"

namespace qwenvl {

bool has_tensor_counts(const Attributes& attributes, int inputs, int outputs) noexcept;

// The input whose type an output has.
int input_like(int output) noexcept;

// True if input number `input` may have type `type` beside a qkv of type `qkv`.
bool is_type_of(const Attributes& attributes, int input, nvinfer1::DataType type, nvinfer1::DataType qkv) noexcept;

// True if the inputs' shapes fit the attributes and each other; -1 is a size that is not known yet. Logs what is wrong.
bool check_shapes(const Attributes& attributes, const nvinfer1::Dims* inputs, int count) noexcept;

}  // namespace qwenvl
