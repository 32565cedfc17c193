#include "image/image_kernels.hpp"

#include <cstring>

#include "simd/instruction_set.hpp"

namespace qwenvl {
namespace {

#define QWENVL_KERNELS "image/image_kernels.inc"
#include "simd/each_instruction_set.inc"

}  // namespace

void resample_rows(const std::uint8_t* cells, const BicubicAxis& axis, std::size_t output, std::uint8_t* const* out) {
    QWENVL_CHOOSE(resample_rows)(cells, axis, output, out);
}

void blend_rows(const std::uint8_t* const* rows, const std::int32_t* weights, std::size_t count, std::size_t size,
                std::int32_t* const* out) {
    QWENVL_CHOOSE(blend_rows)(rows, weights, count, size, out);
}

}  // namespace qwenvl
