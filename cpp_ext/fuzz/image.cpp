// Any size, layout and stride: no access outside the picture, and the same values with every instruction set.
#include <memory>

#include "image/pixel_values.hpp"
#include "input.hpp"
#include "simd/instruction_set.hpp"

using fuzz::require;

namespace {

struct Picture {
    std::unique_ptr<std::uint8_t[]> memory;  // exactly as large as needed, so that an access outside is found
    qwenvl::Pixels pixels;
};

Picture take_picture(fuzz::Input& input) {
    const bool nv12 = input.take<std::uint8_t>() % 4 == 0;
    std::size_t height = input.between(1, 80), width = input.between(1, 80);
    if (nv12) height = (height + 1) / 2 * 2, width = (width + 1) / 2 * 2;
    const std::size_t rows = nv12 ? height / 2 * 3 : height;
    const std::size_t channels = nv12 ? 1 : input.between(0, 2) == 0 ? 1 : input.between(3, 4);
    const std::size_t step = channels * input.between(1, 2);
    // The last row and pixel end where their last byte is.
    const std::size_t row_bytes = (width - 1) * step + channels, size = (rows - 1) * row_bytes + row_bytes;
    Picture picture{std::make_unique<std::uint8_t[]>(size), {}};
    const std::string_view bytes = input.take_bytes(SIZE_MAX);
    for (std::size_t i = 0; i < size && !bytes.empty(); ++i)
        picture.memory[i] = static_cast<std::uint8_t>(bytes[i % bytes.size()]);
    picture.pixels = {picture.memory.get(),
                      height,
                      width,
                      static_cast<std::ptrdiff_t>(row_bytes),
                      static_cast<std::ptrdiff_t>(step),
                      channels == 1 ? 0 : 1,
                      nv12 ? qwenvl::Pixels::Format::kNv12 : qwenvl::Pixels::Format::kInterleaved};
    return picture;
}

// The same memory read from its other end.
void flip(qwenvl::Pixels& pixels, bool rows, bool columns) {
    const auto height = static_cast<std::ptrdiff_t>(pixels.height), width = static_cast<std::ptrdiff_t>(pixels.width);
    if (rows) {
        pixels.data += (height - 1) * pixels.row_stride;
        pixels.row_stride = -pixels.row_stride;
    }
    if (columns) {
        pixels.data += (width - 1) * pixels.pixel_stride;
        pixels.pixel_stride = -pixels.pixel_stride;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input(data, size);
    const std::size_t height = input.between(1, 90), width = input.between(1, 90);
    const std::uint8_t bits = input.take<std::uint8_t>();
    Picture picture = take_picture(input);
    if (picture.pixels.format == qwenvl::Pixels::Format::kInterleaved) flip(picture.pixels, bits & 1, bits & 2);
    const qwenvl::Normalisation normalisation{{0.5f, 0.4f, 0.3f}, {0.2f, 0.3f, 0.4f}};
    std::vector<float> first;
    for (const std::string& variant : qwenvl::kernel_variants()) {
        qwenvl::use_kernels(variant);
        std::vector<float> values(3 * height * width, -100.0f);
        qwenvl::pixel_values(picture.pixels, (bits & 4) != 0, normalisation, height, width, values.data());
        for (float value : values) require(value >= -2.5f && value <= 4.0f, "every value is a normalised byte");
        require(first.empty() || first == values, "every instruction set gives the same values");
        first = std::move(values);
    }
    return 0;
}
