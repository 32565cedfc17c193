#include "matmul/layer_rows.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd/instruction_set.hpp"

namespace qwenvl {
namespace {

constexpr std::size_t kLanes = 16;

#define QWENVL_KERNELS "matmul/layer_rows.inc"
#include "simd/each_instruction_set.inc"

}  // namespace

void rms_norm(const float* x, const float* weight, std::size_t size, float epsilon, float* out) {
    const float mean = QWENVL_CHOOSE(sum_of_squares)(x, size) / static_cast<float>(size);
    QWENVL_CHOOSE(scale_row)(x, weight, 1.0f / std::sqrt(mean + epsilon), size, out);
}

void layer_norm(const float* x, const float* weight, const float* bias, std::size_t size, float epsilon, float* out) {
    const float mean = QWENVL_CHOOSE(sum)(x, size) / static_cast<float>(size);
    const float variance = QWENVL_CHOOSE(sum_of_squares_around)(x, mean, size) / static_cast<float>(size);
    QWENVL_CHOOSE(move_row)(x, weight, bias, mean, 1.0f / std::sqrt(variance + epsilon), size, out);
}

void activate(Activation activation, std::size_t size, float* y) {
    switch (activation) {
        case Activation::kNone:
            return;
        case Activation::kGelu:
            return QWENVL_CHOOSE(gelu)(size, y);
        case Activation::kGeluTanh:
            return QWENVL_CHOOSE(gelu_tanh)(size, y);
        case Activation::kQuickGelu:
            return QWENVL_CHOOSE(quick_gelu)(size, y);
    }
}

void multiply_silu(const float* gate, std::size_t size, float* y) { QWENVL_CHOOSE(multiply_silu)(gate, size, y); }

void add_row(const float* x, std::size_t size, float* y) { QWENVL_CHOOSE(add_row)(x, size, y); }

}  // namespace qwenvl
