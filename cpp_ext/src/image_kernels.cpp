#include "qwenvl/image_kernels.hpp"

#include <cstring>

#include "qwenvl/instruction_set.hpp"

// Vectors are only passed between functions that are inlined into each other.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace qwenvl {
namespace {

namespace portable {
#define QWENVL_TARGET
#define QWENVL_WIDTH 4
#include "image_kernels.inc"
#undef QWENVL_TARGET
#undef QWENVL_WIDTH
}  // namespace portable

#if defined(__x86_64__)
namespace avx2 {
#define QWENVL_TARGET QWENVL_AVX2
#define QWENVL_WIDTH 8
#include "image_kernels.inc"
#undef QWENVL_TARGET
#undef QWENVL_WIDTH
}  // namespace avx2

namespace avx512 {
#define QWENVL_TARGET QWENVL_AVX512
#define QWENVL_WIDTH 16
#include "image_kernels.inc"
#undef QWENVL_TARGET
#undef QWENVL_WIDTH
}  // namespace avx512
#endif

}  // namespace

void resample_rows(const std::uint8_t* cells, const BicubicAxis& axis, std::size_t output, std::uint8_t* const* out) {
    QWENVL_CHOOSE(resample_rows)(cells, axis, output, out);
}

void blend_rows(const std::uint8_t* const* rows, const std::int32_t* weights, std::size_t count, std::size_t size,
                std::int32_t* const* out) {
    QWENVL_CHOOSE(blend_rows)(rows, weights, count, size, out);
}

}  // namespace qwenvl
