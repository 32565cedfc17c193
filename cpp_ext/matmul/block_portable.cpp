// The definition of the products, in plain C++: what every other kernel is compared with.
#include <algorithm>
#include <cmath>
#include <limits>

#include "matmul/block_kernels.hpp"

namespace qwenvl {
namespace {

std::int32_t weight(const BlockMatrix& matrix, std::size_t output, std::size_t input) {
    const std::uint8_t* const row = matrix.packed + output * matrix.row_bytes();
    return matrix.bits == 8 ? row[input] : row[input / 2] >> (input % 2 * 4) & 0xF;
}

// The place of an input among a row's values.
std::size_t place_of(const BlockMatrix& matrix, std::size_t input) {
    if (matrix.bits == 8) return input;
    return input / 128 * 128 + input % 2 * 64 + input % 128 / 2;
}

void round_row(const BlockMatrix& matrix, const float* values, const RoundedRow& out) {
    const std::size_t groups = matrix.chunks() * kGroups, group = kGroupBytes * matrix.planes();
    std::fill(out.values, out.values + groups * group, std::int8_t{0});
    std::fill(out.starts, out.starts + groups, 0);
    std::fill(out.group_scales, out.group_scales + groups, 0.0f);
    for (std::size_t b = 0; b < matrix.blocks(); ++b) {
        const std::size_t first = b * matrix.block, last = first + matrix.block;
        float most = 0;
        bool is_finite = true;
        for (std::size_t i = first; i < last; ++i) {
            most = std::max(most, std::fabs(values[i]));
            is_finite = is_finite && std::isfinite(values[i]);
        }
        const float inverse = inverse_of(most);
        out.scales[b] = is_finite ? most / kMost : std::numeric_limits<float>::quiet_NaN();
        out.block_starts[b] = 0;
        for (std::size_t i = first; i < last; ++i) {
            const auto value = static_cast<std::int8_t>(is_finite ? std::nearbyintf(values[i] * inverse) : 0.0f);
            out.values[place_of(matrix, i)] = value;
            out.starts[i / group] -= matrix.zero() * value;
            out.group_scales[i / group] = out.scales[b];
            out.block_starts[b] -= matrix.zero() * value;
        }
    }
}

// Adds in the order of the vector kernels: sixteen sums, one per group of a chunk, which are then added up.
void multiply_few(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                  std::size_t last, float* y) {
    const std::size_t group = matrix.bits == 4 ? 8 : 4;
    for (std::size_t m = 0; m < rows.count(); ++m) {
        for (std::size_t output = first; output < last; ++output) {
            float sums[kGroups] = {};
            for (std::size_t at = 0; at < matrix.inputs / group; ++at) {
                std::int32_t sum = rows.starts(m)[at];
                for (std::size_t input = at * group; input < (at + 1) * group; ++input) {
                    sum += weight(matrix, output, input) * rows.values(m)[place_of(matrix, input)];
                }
                const float scale = matrix.scales[output * matrix.blocks() + at * group / matrix.block];
                float& lane = sums[at % kGroups];
                lane = std::fmaf(static_cast<float>(sum), scale * rows.group_scales(m)[at], lane);
            }
            for (std::size_t half = kGroups / 2; half > 0; half /= 2) {
                for (std::size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
            }
            y[m * matrix.outputs + output] = sums[0] + (bias ? bias[output] : 0.0f);
        }
    }
}

void multiply_panel(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                    std::size_t last, float* y) {
    for (std::size_t m = 0; m < rows.count(); ++m) {
        for (std::size_t output = first; output < last; ++output) {
            float total = 0;
            for (std::size_t b = 0; b < matrix.blocks(); ++b) {
                std::int32_t sum = rows.block_starts(m)[b];
                for (std::size_t input = b * matrix.block; input < (b + 1) * matrix.block; ++input) {
                    sum += weight(matrix, output, input) * rows.values(m)[place_of(matrix, input)];
                }
                const float scale = matrix.scales[output * matrix.blocks() + b];
                total = std::fmaf(static_cast<float>(sum) * scale, rows.scales(m)[b], total);
            }
            y[m * matrix.outputs + output] = total + (bias ? bias[output] : 0.0f);
        }
    }
}

}  // namespace

const MultiplyKernels kPortableKernels{"portable", [] { return true; }, round_row, multiply_few, multiply_panel};

}  // namespace qwenvl
