// The steps between a layer's products, on rows of floats. Every instruction set gives the same bits.
#pragma once

#include <cstddef>

namespace qwenvl {

// out = x / sqrt(mean(x^2) + epsilon) * weight, of `size` numbers each.
void rms_norm(const float* x, const float* weight, std::size_t size, float epsilon, float* out);

// out = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias, of `size` numbers each.
void layer_norm(const float* x, const float* weight, const float* bias, std::size_t size, float epsilon, float* out);

// Functions that a tower applies after a layer: none, y * Phi(y), the same with tanh for Phi, y * sigmoid(1.702 y).
enum class Activation { kNone, kGelu, kGeluTanh, kQuickGelu };
void activate(Activation activation, std::size_t size, float* y);

// y *= gate * sigmoid(gate)
void multiply_silu(const float* gate, std::size_t size, float* y);

// y += x
void add_row(const float* x, std::size_t size, float* y);

}  // namespace qwenvl
