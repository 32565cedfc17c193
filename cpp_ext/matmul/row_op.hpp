// The operator RowsLinear of the domain "qwenvl_edge": a linear layer of a picture tower and what stands around it.
#pragma once

#include "matmul/ort_abi.hpp"

namespace qwenvl {

// y = residual + activation(norm(x) W + bias) * silu(norm(x) G + gate_bias). Inputs: x [M, K] float32; weight [K, N]
// int8, scales [N] float32; optionally bias [N]; norm [K] and, for a layer norm instead of an RMS norm, norm_bias [K];
// gate [K, N] int8, gate_scales [N] and gate_bias [N]; residual [M, N]. Attributes: epsilon; activation, 0: none,
// 1: GELU, 2: GELU by tanh, 3: x * sigmoid(1.702 x). Output [M, N] float32.
const ort::CustomOp* rows_linear_op();

}  // namespace qwenvl
