// Rows of floats times a matrix of bytes with one scale per output: the linear layers of a picture tower.
//
// Each row is rounded to 8 bits with one scale, and products are summed as integers over all inputs, so that every
// kernel gives the same bits: y = float(sum) * (scale of the row * scale of the output) + bias.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "simd/aligned.hpp"

namespace qwenvl {

struct RowMatrix {
    std::size_t outputs, inputs;
    const std::int8_t* integers;  // [inputs, outputs], as ONNX Runtime's MatMulInteger reads them
    const float* scales;          // [outputs]
};

constexpr std::size_t kMostRowInputs = std::size_t{1} << 16;  // whose sums fit into 32 bits

// Rows as integers, by tile of 16 rows, 64 inputs and row; what is missing of the last tiles is zero. A row with NaN or
// infinity has the scale NaN.
class ByteRows {
public:
    static constexpr std::size_t kTile = 16, kInputs = 64, kTileBytes = kTile * kInputs;
    static constexpr std::size_t kRows = 2 * kTile;  // that the room for rows is a multiple of

    // Makes room for `count` rows. Then `round` makes each row; several threads may call it for different rows.
    void reset(std::size_t count, std::size_t inputs);
    void round(std::size_t row, const float* values);

    std::size_t count() const { return count_; }
    std::size_t chunks() const { return chunks_; }  // of kInputs inputs
    float scale(std::size_t row) const { return scales_[row]; }

    // The integers of a row's first chunk; those of the next one lie kTileBytes after them.
    const std::int8_t* values(std::size_t row) const {
        return values_.data() + row / kTile * chunks_ * kTileBytes + row % kTile * kInputs;
    }

private:
    std::size_t count_ = 0, inputs_ = 0, chunks_ = 0;
    AlignedVector<std::int8_t> values_;
    AlignedVector<float> scales_;
};

// The number of outputs that one call of `multiply` should compute; a multiple of 64.
std::size_t outputs_per_task(const RowMatrix& matrix);

// Called with the rows from .. to before .. whose outputs are complete, while they are still in the caches.
using RowsDone = std::function<void(std::size_t, std::size_t)>;

// Writes y[row * matrix.outputs + i] for outputs i from `first` to before `last`; adds `bias` unless it is null. The
// kernels are those that multiply_variant() names: AMX's tiles, AVX-512 VNNI, and plain C++ for all others.
void multiply(const RowMatrix& matrix, const ByteRows& rows, const float* bias, std::size_t first, std::size_t last,
              float* y, const RowsDone& done);

}  // namespace qwenvl
