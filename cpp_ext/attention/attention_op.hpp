// The operator CachedAttention of the domain "qwenvl_edge": what stands between a decoder layer's first product and its
// second, over a KV cache in float16.
#pragma once

#include "matmul/ort_abi.hpp"

namespace qwenvl {

// Inputs: qkv [B * T, (heads + 2 * kv_heads) * D] float32; rope_cos, rope_sin [B, T, D / 2] float32; last_indices [B]
// int32, the cache row of each row's last token; past_key, past_value [B, kv_heads, C, D] float16; optionally
// query_scale [B, T], q_norm and k_norm [D] float32. Attributes num_heads, kv_num_heads, epsilon. Outputs: [B * T,
// heads * D] float32; present_key, present_value, which may be the past's own memory.
const ort::CustomOp* attention_op();

}  // namespace qwenvl
