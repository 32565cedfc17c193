#include "matmul/row_matmul.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "matmul/block_matmul.hpp"
#include "matmul/row_kernels.hpp"
#include "simd/instruction_set.hpp"
#include "simd/intrinsics.hpp"

namespace qwenvl {
namespace {

#define QWENVL_KERNELS "matmul/row_round.inc"
#include "simd/each_instruction_set.inc"

row_kernels::Multiply* kernel() {
#if defined(__x86_64__)
    const std::string name = multiply_variant();
#if defined(QWENVL_HAS_AMX)
    if (name == "amx-int8") return row_kernels::amx;
#endif
    if (name == "avx512-vnni") return row_kernels::vnni;
#endif
    return row_kernels::portable;
}

}  // namespace

void ByteRows::reset(std::size_t count, std::size_t inputs) {
    count_ = count, inputs_ = inputs;
    chunks_ = (inputs + kInputs - 1) / kInputs;
    const std::size_t rows = (count + kRows - 1) / kRows * kRows, tile = chunks_ * kTileBytes;
    values_.resize(rows / kTile * tile);
    scales_.resize(rows);
    std::fill(values_.begin() + static_cast<std::ptrdiff_t>(count / kTile * tile), values_.end(), std::int8_t{0});
    std::fill(scales_.begin() + static_cast<std::ptrdiff_t>(count), scales_.end(), 0.0f);
}

void ByteRows::round(std::size_t row, const float* values) {
    std::int8_t* const out = const_cast<std::int8_t*>(this->values(row));
    if (inputs_ % kInputs != 0) std::fill_n(out + (chunks_ - 1) * kTileBytes, kInputs, std::int8_t{0});
    scales_[row] = QWENVL_CHOOSE(round_row)(values, inputs_, out);
}

// The weights of a task stay in the second cache while all rows pass; every thread has a task.
std::size_t outputs_per_task(const RowMatrix& matrix) {
    constexpr std::size_t kUnit = 64, kMostBytes = std::size_t{1} << 20, kFewest = 4;
    static const std::size_t threads = std::max<std::size_t>(std::thread::hardware_concurrency(), kFewest);
    const std::size_t share = (matrix.outputs + threads - 1) / threads;
    const std::size_t most = std::max(kMostBytes / matrix.inputs / kUnit * kUnit, kUnit);
    return std::min((share + kUnit - 1) / kUnit * kUnit, most);
}

void multiply(const RowMatrix& matrix, const ByteRows& rows, const float* bias, std::size_t first, std::size_t last,
              float* y, const RowsDone& done) {
    kernel()(matrix, rows, bias, first, last, y, done);
}

void row_kernels::portable(const RowMatrix& matrix, const ByteRows& rows, const float* bias, std::size_t first,
                           std::size_t last, float* y, const RowsDone& done) {
    std::vector<std::int32_t> sums(last - first);
    for (std::size_t row = 0; row < rows.count(); ++row) {
        std::fill(sums.begin(), sums.end(), 0);
        for (std::size_t k = 0; k < matrix.inputs; ++k) {
            const std::int8_t* const weights = matrix.integers + k * matrix.outputs + first;
            const std::int8_t value = rows.values(row)[k / ByteRows::kInputs * ByteRows::kTileBytes + k % ByteRows::kInputs];
            for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += value * weights[i];
        }
        for (std::size_t i = first; i < last; ++i) {
            const float value = static_cast<float>(sums[i - first]) * (rows.scale(row) * matrix.scales[i]);
            y[row * matrix.outputs + i] = value + (bias == nullptr ? 0.0f : bias[i]);
        }
        done(row, row + 1);
    }
}

}  // namespace qwenvl
