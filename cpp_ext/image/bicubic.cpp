#include "image/bicubic.hpp"

#include <algorithm>
#include <cmath>

namespace qwenvl {
namespace {

constexpr double kSupport = 2.0;

// Keys' cubic convolution (1981) with a = -1/2. The order of operations decides the last bit.
double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < kSupport) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

std::int32_t to_fixed(double weight) {
    const double scaled = weight * (1 << kWeightBits);
    return static_cast<std::int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
}

}  // namespace

BicubicAxis::BicubicAxis(std::size_t input, std::size_t output) {
    const double scale = static_cast<double>(input) / static_cast<double>(output);
    const double stretch = std::max(scale, 1.0), support = kSupport * stretch;
    widest_ = std::min(input, static_cast<std::size_t>(std::ceil(support)) * 2 + 1);
    first_.resize(output);
    count_.resize(output);
    weights_.resize(output * widest_);
    std::vector<double> exact(widest_);
    for (std::size_t i = 0; i < output; ++i) {
        const double center = (static_cast<double>(i) + 0.5) * scale;
        const double begin = std::max(center - support + 0.5, 0.0);
        const std::size_t first = first_[i] = static_cast<std::size_t>(begin);
        const std::size_t end = std::min(input, static_cast<std::size_t>(center + support + 0.5));
        count_[i] = end - first;
        double sum = 0;
        for (std::size_t x = 0; x < count_[i]; ++x) {
            exact[x] = bicubic((static_cast<double>(x + first) - center + 0.5) * (1.0 / stretch));
            sum += exact[x];
        }
        for (std::size_t x = 0; x < count_[i]; ++x) weights_[i * widest_ + x] = to_fixed(exact[x] / sum);
    }
}

}  // namespace qwenvl
