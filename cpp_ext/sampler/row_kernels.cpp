#include "sampler/row_kernels.hpp"

#include <cstdint>
#include <cstring>
#include <limits>

#include "simd/instruction_set.hpp"

namespace qwenvl {
namespace {

constexpr std::size_t kLanes = 16;
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

#define QWENVL_KERNELS "sampler/row_kernels.inc"
#include "simd/each_instruction_set.inc"

}  // namespace

RowScan scan_row(const float* row, std::size_t size, float* group_max) {
    return QWENVL_CHOOSE(scan_row)(row, size, group_max);
}

void exp_row(const float* row, std::size_t size, float max, float inverse_temperature, float* weights,
             double* block_sums) {
    QWENVL_CHOOSE(exp_row)(row, size, max, inverse_temperature, weights, block_sums);
}

void widen_float16(const std::uint16_t* row, std::size_t size, float* out) {
    QWENVL_CHOOSE(widen_float16)(row, size, out);
}

void widen_bfloat16(const std::uint16_t* row, std::size_t size, float* out) {
    QWENVL_CHOOSE(widen_bfloat16)(row, size, out);
}

double portable_log(double x) {
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    int exponent = static_cast<int>(bits >> 52) - 1023;
    bits = (bits & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u;
    double m;
    std::memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        ++exponent;
    }
    // ln(m) = 2 atanh((m - 1) / (m + 1)), |t| <= 0.172
    const double t = (m - 1.0) / (m + 1.0), t2 = t * t;
    double sum = 0;
    for (int k = 21; k >= 1; k -= 2) sum = sum * t2 + 1.0 / k;
    return 2.0 * t * sum + exponent * 0.6931471805599453;
}

}  // namespace qwenvl
