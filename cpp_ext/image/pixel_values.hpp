// A picture to a vision model's input: resized as Pillow's Image.resize(size, BICUBIC) does, and normalised.
#pragma once

#include <array>
#include <cstddef>

#include "image/pixels.hpp"

namespace qwenvl {

struct Normalisation {
    std::array<float, 3> mean, std;  // of the first, second and third channel of the output
};

// Writes (value / 255 - mean) / std to `out` [3, height, width]; `reversed`: the picture's channels are in reverse
// order.
void pixel_values(const Pixels& pixels, bool reversed, const Normalisation& normalisation, std::size_t height,
                  std::size_t width, float* out);

}  // namespace qwenvl
