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

// The division of a picture into rows x columns patches of patch x patch pixels. merge x merge patches are a token; a
// patch holds `times` frames, of which a call fills those from first_time to before end_time.
struct PatchGrid {
    std::size_t rows, columns, patch, merge, times, first_time, end_time;

    bool valid() const {
        return rows > 0 && columns > 0 && patch > 0 && merge > 0 && rows % merge == 0 && columns % merge == 0 &&
               first_time < end_time && end_time <= times;
    }
};

// The same values in the order of patch vectors: token by token, its patches row by row, each as [3, times, patch,
// patch]. `out` has room for rows * columns of them.
void patch_values(const Pixels& pixels, bool reversed, const Normalisation& normalisation, const PatchGrid& grid,
                  float* out);

}  // namespace qwenvl
