// Bicubic interpolation along one axis, as Pillow computes it: the input pixels of each output pixel and their weights
// in fixed point. When the picture shrinks, the kernel is widened so that it covers all input pixels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace qwenvl {

constexpr int kWeightBits = 22;  // 32 less 8 for the pixel, 1 for the sign and 1 because sums of weights may exceed 1

struct Taps {
    std::size_t first;  // input pixel
    std::size_t count;
    const std::int32_t* weights;  // [count], sum about 2^kWeightBits
};

class BicubicAxis {
public:
    // `input` and `output` pixels, both positive.
    BicubicAxis(std::size_t input, std::size_t output);

    Taps operator[](std::size_t output) const {
        return {first_[output], count_[output], weights_.data() + output * widest_};
    }
    std::size_t widest() const { return widest_; }  // no output pixel has more taps

private:
    std::size_t widest_;
    std::vector<std::size_t> first_, count_;
    std::vector<std::int32_t> weights_;
};

}  // namespace qwenvl
