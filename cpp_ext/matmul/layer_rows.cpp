#include "matmul/layer_rows.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd/instruction_set.hpp"

// The warning concerns vector arguments; all functions that have them are inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

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

void multiply_silu(const float* gate, std::size_t size, float* y) { QWENVL_CHOOSE(multiply_silu)(gate, size, y); }

void add_row(const float* x, std::size_t size, float* y) { QWENVL_CHOOSE(add_row)(x, size, y); }

}  // namespace qwenvl
