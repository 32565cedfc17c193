// What stands between the products of a layer, on rows of floats. Every instruction set gives the same bits.
#pragma once

#include <cstddef>

namespace qwenvl {

// out = x / sqrt(mean(x^2) + epsilon) * weight, of `size` numbers each.
void rms_norm(const float* x, const float* weight, std::size_t size, float epsilon, float* out);

// y *= gate * sigmoid(gate)
void multiply_silu(const float* gate, std::size_t size, float* y);

// y += x
void add_row(const float* x, std::size_t size, float* y);

}  // namespace qwenvl
