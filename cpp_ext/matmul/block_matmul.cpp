#include "matmul/block_matmul.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "matmul/block_kernels.hpp"

namespace qwenvl {
namespace {

// Best first.
const MultiplyKernels* const kAll[] = {
#if defined(__x86_64__)
#if defined(QWENVL_HAS_AMX)
    &kAmxKernels,
#endif
    &kAvx512VnniKernels,
    &kAvxVnniKernels,
    &kAvx2Kernels,
#elif defined(__aarch64__)
    &kNeonI8mmKernels,
    &kNeonDotKernels,
#endif
    &kPortableKernels,
};

const MultiplyKernels* find(const std::string& name) {
    for (const MultiplyKernels* kernels : kAll) {
        if (kernels->supported() && kernels->name == name) return kernels;
    }
    throw std::invalid_argument("this processor has no matrix products named " + name);
}

// Tests and benchmarks may ask a whole process for other kernels than the best.
const MultiplyKernels* first() {
    const char* const forced = std::getenv("QWENVL_TEST_MULTIPLY");
    return find(forced != nullptr && *forced != '\0' ? forced : multiply_variants().front());
}

std::atomic<const MultiplyKernels*>& chosen() {
    static std::atomic<const MultiplyKernels*> kernels{first()};
    return kernels;
}

const MultiplyKernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

}  // namespace

void RoundedRows::reset(const BlockMatrix& matrix, std::size_t count) {
    form_ = matrix;
    count_ = count;
    blocks_ = matrix.blocks();
    chunks_ = matrix.chunks();
    const TileKernels* const tiles = kernels().tiles;
    tiles_ = tiles != nullptr && count >= tiles->fewest ? tiles : nullptr;
    if (in_tiles()) {
        const std::size_t rows = (count + kTileRows - 1) / kTileRows * kTileRows;
        padded_ = tiles->row_bytes(matrix);
        values_.resize(rows * padded_);
        scales_.resize(rows * blocks_);
        return;
    }
    padded_ = chunks_ * matrix.planes() * kChunkBytes;
    values_.resize(count * padded_);
    starts_.resize(count * chunks_ * kGroups);
    group_scales_.resize(count * chunks_ * kGroups);
    block_starts_.resize(count * blocks_);
    scales_.resize(count * blocks_);
}

void RoundedRows::round(std::size_t row, const float* values) {
    if (in_tiles()) return round_in_tile(row, values);
    kernels().round_row(form_, values,
                        {values_.data() + row * padded_, starts_.data() + row * chunks_ * kGroups,
                         group_scales_.data() + row * chunks_ * kGroups, block_starts_.data() + row * blocks_,
                         scales_.data() + row * blocks_});
}

void RoundedRows::round_in_tile(std::size_t row, const float* values) {
    const std::size_t lane = row % kTileRows, first = row - lane;
    std::int8_t* const tile = values_.data() + first * padded_;
    float* const scales = scales_.data() + first * blocks_;
    if (lane == 0 && first + kTileRows > count_) {
        std::fill_n(tile, kTileRows * padded_, std::int8_t{0});
        std::fill_n(scales, kTileRows * blocks_, 0.0f);
    }
    tiles_->round_row(form_, values, lane, tile, scales);
}

// For few rows equal stretches of weights, long ones, but at least eight of a matrix, so that all threads have some; for
// many rows one panel, or some tiles.
std::size_t outputs_per_task(const BlockMatrix& matrix, const RoundedRows& rows) {
    if (rows.in_tiles()) return kTileOutputs;
    if (rows.count() > kFewRows) return kPanelRows;
    constexpr std::size_t kLongest = std::size_t{1} << 20, kShortest = std::size_t{1} << 15, kTasks = 8, kMultiple = 8;
    const std::size_t bytes = matrix.outputs * matrix.row_bytes();
    const std::size_t wanted = (bytes / (kTasks * kLongest) + 1) * kTasks;
    const std::size_t tasks = std::clamp<std::size_t>(bytes / kShortest, 1, wanted);
    return ((matrix.outputs + tasks - 1) / tasks + kMultiple - 1) / kMultiple * kMultiple;
}

void multiply(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
              std::size_t last, float* y) {
    if (rows.in_tiles()) return kernels().tiles->multiply(matrix, rows, bias, first, last, y);
    if (rows.count() <= kFewRows) return kernels().few(matrix, rows, bias, first, last, y);
    for (std::size_t at = first; at < last; at += kPanelRows) {
        kernels().panel(matrix, rows, bias, at, std::min(at + kPanelRows, last), y);
    }
}

std::vector<std::string> multiply_variants() {
    std::vector<std::string> names;
    for (const MultiplyKernels* kernels : kAll) {
        if (kernels->supported()) names.emplace_back(kernels->name);
    }
    return names;
}

std::string multiply_variant() { return kernels().name; }

void use_multiply(const std::string& name) { chosen() = find(name); }

}  // namespace qwenvl
