#include "image/pixel_values.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "image/image_kernels.hpp"

namespace qwenvl {
namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::size_t kTile = 128;  // columns unpacked at a time, few enough to stay in the cache

std::size_t rounded_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

// Rows of the picture, resampled along x when they are needed. As many are kept as one output row needs at most.
class ResampledRows {
public:
    ResampledRows(const Pixels& pixels, std::size_t width, std::size_t most)
        : pixels_(pixels),
          axis_(pixels.width, width),
          width_(width),
          row_bytes_(rounded_up(width, kSpan) * kPixelBytes),
          kept_(rounded_up(most + kRows - 1, kRows)),
          rows_(kept_ * row_bytes_),
          cells_(pixels.width * kCell) {}

    const std::uint8_t* row(std::size_t y) const { return rows_.data() + y % kept_ * row_bytes_; }

    void advance_to(std::size_t end) {
        for (; done_ < end; done_ += kRows) {
            std::uint8_t* out[kRows];
            for (std::size_t i = 0; i < kRows; ++i) out[i] = rows_.data() + (done_ + i) % kept_ * row_bytes_;
            unpack(std::min(kRows, pixels_.height - done_));
            resample_rows(cells_.data(), axis_, width_, out);
        }
    }

private:
    void unpack(std::size_t rows) {
        for (std::size_t begin = 0; begin < pixels_.width; begin += kTile) {
            const std::size_t end = std::min(pixels_.width, begin + kTile);
            for (std::size_t i = 0; i < rows; ++i)
                pixels_.unpack_row(done_ + i, begin, end, cells_.data() + begin * kCell + i * kPixelBytes);
        }
    }

    const Pixels& pixels_;
    BicubicAxis axis_;
    std::size_t width_, row_bytes_, kept_, done_ = 0;
    Bytes rows_, cells_;
};

using Table = std::array<float, 256>;

Table normalised_bytes(float mean, float std) {
    Table table{};
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = (static_cast<float>(i) / 255.0f - mean) / std;
    return table;
}

// Resizes and calls write(channel, y, row) with each row of bytes [width] as int32, and the channel's table.
template <typename Write>
void for_each_row(const Pixels& pixels, bool reversed, std::size_t height, std::size_t width, Write write) {
    const BicubicAxis axis(pixels.height, height);
    ResampledRows rows(pixels, width, axis.widest());
    const std::size_t padded = rounded_up(width, kSpan);
    std::vector<std::int32_t> blended(3 * padded);
    std::int32_t* planes[] = {blended.data(), blended.data() + padded, blended.data() + 2 * padded};
    if (reversed) std::swap(planes[0], planes[2]);
    std::vector<const std::uint8_t*> sources(axis.widest());
    for (std::size_t y = 0; y < height; ++y) {
        const Taps taps = axis[y];
        rows.advance_to(taps.first + taps.count);
        for (std::size_t i = 0; i < taps.count; ++i) sources[i] = rows.row(taps.first + i);
        blend_rows(sources.data(), taps.weights, taps.count, padded, planes);
        for (std::size_t channel = 0; channel < 3; ++channel) write(channel, y, blended.data() + channel * padded);
    }
}

struct Tables {
    explicit Tables(const Normalisation& normalisation) {
        for (std::size_t i = 0; i < 3; ++i) of[i] = normalised_bytes(normalisation.mean[i], normalisation.std[i]);
    }
    Table of[3];
};

}  // namespace

void pixel_values(const Pixels& pixels, bool reversed, const Normalisation& normalisation, std::size_t height,
                  std::size_t width, float* out) {
    const Tables tables(normalisation);
    for_each_row(pixels, reversed, height, width, [&](std::size_t channel, std::size_t y, const std::int32_t* from) {
        const float* table = tables.of[channel].data();
        float* to = out + (channel * height + y) * width;
        for (std::size_t x = 0; x < width; ++x) to[x] = table[from[x]];
    });
}

void patch_values(const Pixels& pixels, bool reversed, const Normalisation& normalisation, const PatchGrid& grid,
                  float* out) {
    const Tables tables(normalisation);
    const std::size_t side = grid.patch, area = side * side, patch_size = 3 * grid.times * area;
    const std::size_t height = grid.rows * side, width = grid.columns * side;
    for_each_row(pixels, reversed, height, width, [&](std::size_t channel, std::size_t y, const std::int32_t* from) {
        const float* table = tables.of[channel].data();
        const std::size_t row = y / side, inside = (channel * grid.times * side + y % side) * side;
        // Patches of a token lie together: merge x merge of them, row by row.
        const std::size_t tokens_before = row / grid.merge * (grid.columns / grid.merge);
        for (std::size_t column = 0; column < grid.columns; ++column) {
            const std::size_t token = tokens_before + column / grid.merge;
            const std::size_t patch = (token * grid.merge + row % grid.merge) * grid.merge + column % grid.merge;
            float* to = out + patch * patch_size + inside;
            for (std::size_t x = 0; x < side; ++x) {
                const float value = table[from[column * side + x]];
                for (std::size_t time = grid.first_time; time < grid.end_time; ++time) to[time * area + x] = value;
            }
        }
    });
}

}  // namespace qwenvl
