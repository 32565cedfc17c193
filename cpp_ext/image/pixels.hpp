// A picture in the caller's memory, and its rows as four bytes per pixel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwenvl {

constexpr std::size_t kRows = 16;                   // rows that are unpacked and resampled together
constexpr std::size_t kPixelBytes = 4;              // three channels and a byte without meaning
constexpr std::size_t kCell = kRows * kPixelBytes;  // one column of unpacked rows

struct Pixels {
    // kNv12: one plane [3H/2, W]: H rows of Y, then H/2 rows of alternating U and V; it is unpacked to R, G, B.
    enum class Format { kInterleaved, kNv12 };

    const std::uint8_t* data;
    std::size_t height, width;
    std::ptrdiff_t row_stride, pixel_stride;  // bytes, any sign
    std::ptrdiff_t channel_stride;            // 0: gray, all three channels are equal
    Format format = Format::kInterleaved;

    // Writes row `y` from column `begin` (even) to `end` to out[0 .. 3], out[kCell .. kCell + 3], ...
    void unpack_row(std::size_t y, std::size_t begin, std::size_t end, std::uint8_t* out) const;

private:
    void unpack_nv12(std::size_t y, std::size_t begin, std::size_t end, std::uint8_t* out) const;
};

}  // namespace qwenvl
