// The two passes of resampling, in integers: sums of at most 255 * 1.3 * 2^22 fit 32 bits, so any order of adding is
// exact.
#pragma once

#include <cstddef>
#include <cstdint>

#include "image/bicubic.hpp"
#include "image/pixels.hpp"

namespace qwenvl {

constexpr std::size_t kSpan = 16;  // pixels; blend_rows works on whole spans

// `cells`: kRows unpacked rows, [width, kRows, kPixelBytes]. Resamples them to out[row], each [output, kPixelBytes].
void resample_rows(const std::uint8_t* cells, const BicubicAxis& axis, std::size_t output, std::uint8_t* const* out);

// out[channel][x] = sum over t of rows[t][x][channel] * weights[t], rounded to 0 .. 255, for three channels and x below
// `size`, a multiple of kSpan.
void blend_rows(const std::uint8_t* const* rows, const std::int32_t* weights, std::size_t count, std::size_t size,
                std::int32_t* const* out);

}  // namespace qwenvl
