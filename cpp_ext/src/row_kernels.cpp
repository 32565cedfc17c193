#include "qwenvl/row_kernels.hpp"

#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

// Vectors are only passed between functions that are inlined into each other.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace qwenvl {
namespace {

constexpr std::size_t kLanes = 16;
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

namespace portable {
#define QWENVL_TARGET
#define QWENVL_WIDTH 4
#include "row_kernels.inc"
#undef QWENVL_TARGET
#undef QWENVL_WIDTH
}  // namespace portable

#if defined(__x86_64__)
namespace avx2 {
#define QWENVL_TARGET __attribute__((target("avx2")))
#define QWENVL_WIDTH 8
#include "row_kernels.inc"
#undef QWENVL_TARGET
#undef QWENVL_WIDTH
}  // namespace avx2

namespace avx512 {
#define QWENVL_TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,prefer-vector-width=512")))
#define QWENVL_WIDTH 16
#include "row_kernels.inc"
#undef QWENVL_TARGET
#undef QWENVL_WIDTH
}  // namespace avx512
#endif

struct Kernels {
    const char* name;
    bool supported;
    decltype(&portable::scan_row) scan;
    decltype(&portable::exp_row) exp;
};

// Best first. NEON is part of every 64-bit ARM, so "portable" uses it there.
const Kernels kVariants[] = {
#if defined(__x86_64__)
    {"avx512",
     __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw"),
     avx512::scan_row, avx512::exp_row},
    {"avx2", static_cast<bool>(__builtin_cpu_supports("avx2")), avx2::scan_row, avx2::exp_row},
#endif
    {"portable", true, portable::scan_row, portable::exp_row},
};

const Kernels* best_variant() {
    const Kernels* variant = kVariants;
    while (!variant->supported) ++variant;
    return variant;
}

const Kernels* g_kernels = best_variant();

}  // namespace

std::vector<std::string> row_kernel_variants() {
    std::vector<std::string> names;
    for (const Kernels& variant : kVariants) {
        if (variant.supported) names.emplace_back(variant.name);
    }
    return names;
}

void use_row_kernels(const std::string& name) {
    for (const Kernels& variant : kVariants) {
        if (variant.supported && variant.name == name) {
            g_kernels = &variant;
            return;
        }
    }
    throw std::invalid_argument("this processor has no row kernels named " + name);
}

RowScan scan_row(const float* row, std::size_t size, float* group_max) { return g_kernels->scan(row, size, group_max); }

void exp_row(const float* row, std::size_t size, float max, float inverse_temperature, float* weights,
             double* block_sums) {
    g_kernels->exp(row, size, max, inverse_temperature, weights, block_sums);
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
