#include "image/pixels.hpp"

#include <algorithm>
#include <cstring>

namespace qwenvl {
namespace {

constexpr int kColorBits = 16;
constexpr int fixed(double value) { return static_cast<int>(value * (1 << kColorBits) + 0.5); }

// BT.601, limited range: Y from 16 to 235, U and V from 16 to 240.
constexpr int kLuma = fixed(255.0 / 219), kChroma = 255;
constexpr int kRedV = fixed(kChroma * 1.402 / 224), kBlueU = fixed(kChroma * 1.772 / 224);
constexpr int kGreenU = fixed(kChroma * (0.114 * 1.772 / 0.587) / 224);
constexpr int kGreenV = fixed(kChroma * (0.299 * 1.402 / 0.587) / 224);

std::uint8_t to_byte(int value) {
    return static_cast<std::uint8_t>(std::clamp((value + (1 << (kColorBits - 1))) >> kColorBits, 0, 255));
}

}  // namespace

void Pixels::unpack_row(std::size_t y, std::size_t begin, std::size_t end, std::uint8_t* out) const {
    if (format == Format::kNv12) return unpack_nv12(y, begin, end, out);
    const std::ptrdiff_t step = pixel_stride, channel = channel_stride;
    const std::uint8_t* from =
        data + static_cast<std::ptrdiff_t>(y) * row_stride + static_cast<std::ptrdiff_t>(begin) * step;
    std::size_t left = end - begin;
    if (channel == 0) {
        for (; left > 0; --left, from += step, out += kCell) std::memset(out, *from, kPixelBytes);
    } else if (channel == 1 && step >= 3) {
        // Each copy reads one byte of the next pixel, so the last pixel is copied below.
        const std::size_t last = end == width ? 1 : 0;
        for (; left > last; --left, from += step, out += kCell) std::memcpy(out, from, kPixelBytes);
    }
    for (; left > 0; --left, from += step, out += kCell) {
        out[0] = from[0];
        out[1] = from[channel];
        out[2] = from[2 * channel];
    }
}

void Pixels::unpack_nv12(std::size_t y, std::size_t begin, std::size_t end, std::uint8_t* out) const {
    const std::ptrdiff_t step = pixel_stride, first = static_cast<std::ptrdiff_t>(begin) * step;
    const std::uint8_t* luma = data + static_cast<std::ptrdiff_t>(y) * row_stride + first;
    const std::uint8_t* chroma = data + static_cast<std::ptrdiff_t>(height + y / 2) * row_stride + first;
    for (std::size_t x = begin; x < end; ++x, luma += step, out += kCell) {
        const int light = (*luma - 16) * kLuma;
        const int u = chroma[0] - 128, v = chroma[step] - 128;
        out[0] = to_byte(light + v * kRedV);
        out[1] = to_byte(light - u * kGreenU - v * kGreenV);
        out[2] = to_byte(light + u * kBlueU);
        if (x % 2 == 1) chroma += 2 * step;
    }
}

}  // namespace qwenvl
