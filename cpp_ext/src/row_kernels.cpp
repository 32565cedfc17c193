#include "qwenvl/row_kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace qwenvl {
namespace {

constexpr std::size_t kLanes = 16;
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// exp(x) for x <= 0: 2^n * p(r) with |r| <= ln(2)/2, error below 2 units in the last place; 0 below -87.
inline float exp_negative(float x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float clamped = x < -87.0f ? -87.0f : x;
    const float shifted = clamped * 1.44269504f + kRound;
    const float n = shifted - kRound;
    const float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.3981999e-3f;
    p = p * r + 8.3334520e-3f;
    p = p * r + 4.1665795e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 5.0000000e-1f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    std::uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;  // the low bits of `shifted` are n
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return x < -87.0f ? 0.0f : p * scale;
}

}  // namespace

RowScan scan_row(const float* row, std::size_t size, float* group_max) {
    float best = kNegativeInfinity;
    bool invalid = false;
    for (std::size_t start = 0; start < size; start += kGroup) {
        const std::size_t count = std::min(kGroup, size - start);
        float lanes[kLanes];
        std::fill(lanes, lanes + kLanes, kNegativeInfinity);
        std::uint32_t bad = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const float x = row[start + i];
            lanes[i % kLanes] = x > lanes[i % kLanes] ? x : lanes[i % kLanes];
            bad |= !(x < std::numeric_limits<float>::infinity());
        }
        const float top = *std::max_element(lanes, lanes + kLanes);
        group_max[start / kGroup] = top;
        best = std::max(best, top);
        invalid = invalid || bad;
    }
    return {best, invalid};
}

void exp_row(const float* row, std::size_t size, float max, float inverse_temperature, float* weights,
             double* block_sums) {
    for (std::size_t start = 0; start < size; start += kBlock) {
        const std::size_t count = std::min(kBlock, size - start);
        float lanes[kLanes] = {};
        for (std::size_t i = 0; i < count; ++i) {
            const float weight = exp_negative((row[start + i] - max) * inverse_temperature);
            weights[start + i] = weight;
            lanes[i % kLanes] += weight;
        }
        double sum = 0;
        for (float lane : lanes) sum += static_cast<double>(lane);
        block_sums[start / kBlock] = sum;
    }
}

float exp_one(float logit, float max, float inverse_temperature) {
    return exp_negative((logit - max) * inverse_temperature);
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
