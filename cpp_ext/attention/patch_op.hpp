// The operator PatchAttention of the domain "qwenvl_edge": attention of a picture tower, between the product that gives
// queries, keys and values and the one that takes its result.
#pragma once

#include "matmul/ort_abi.hpp"

namespace qwenvl {

// Inputs: qkv [N, P, 3 * heads * D] float32, of N pictures of P patches; optionally cos and sin [P, D / 2]; for
// attention within windows, gather [W * G] int64, the patch at each place of W windows, and keys [W, 1, 1, G] bool, the
// places that hold one. Attribute num_heads. Output [N, P, heads * D] float32; patches in no window keep zeros.
const ort::CustomOp* patch_attention_op();

}  // namespace qwenvl
