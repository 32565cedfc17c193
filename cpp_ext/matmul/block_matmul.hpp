// Rows of floats times a matrix of small integers in blocks that share a scale, read where it lies.
//
// The rows are rounded to 8 bits, a scale for each block of each row, and products of blocks are summed as integers:
// weights as they are stored, unsigned, beside signed activations, which is what VNNI's instruction takes. The zero in
// the middle of the weights is a constant times the sum of the activations, from which each sum starts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace qwenvl {

// A row of weights is read in chunks of 64 bytes, each of 16 groups of 4 bytes.
constexpr std::size_t kChunkBytes = 64, kGroups = 16, kGroupBytes = 4;

// W [outputs, inputs] as ONNX Runtime's MatMulNBits stores it: `packed` holds for every row its values in order, two
// 4-bit ones a byte, the first in the low half; w = scale * (value - zero), zero = 2^(bits - 1).
struct BlockMatrix {
    std::size_t outputs, inputs;
    int bits;               // 4 or 8
    std::size_t block;      // inputs that share a scale: a power of two from 32 on that divides `inputs`
    const std::uint8_t* packed;
    const float* scales;    // [outputs, inputs / block]

    std::size_t blocks() const { return inputs / block; }
    std::size_t row_bytes() const { return inputs * static_cast<std::size_t>(bits) / 8; }
    std::int32_t zero() const { return 1 << (bits - 1); }

    // Of a row, the last one perhaps broken; and how many vectors of 64 activations go with one.
    std::size_t chunks() const { return (row_bytes() + kChunkBytes - 1) / kChunkBytes; }
    std::size_t planes() const { return bits == 4 ? 2 : 1; }
};

// A row of activations as the kernels read it, by the chunks and groups of the weights that it meets. A block with NaN or
// infinity has the scale NaN, so that nothing that depends on it looks like a number.
struct RoundedRow {
    std::int8_t* values;         // by chunk; of 4-bit weights first the 64 in even places, then those in odd places
    std::int32_t* starts;        // by chunk and group: what a sum of products starts from
    float* group_scales;         // by chunk and group: the scale of the group's block
    std::int32_t* block_starts;  // by block: what a sum of the whole block starts from
    float* scales;               // by block
};

// Rows of activations for matrices of one form.
class RoundedRows {
public:
    // Room for `count` rows, which are then made by `round`, from several threads if need be.
    void reset(const BlockMatrix& matrix, std::size_t count);
    void round(std::size_t row, const float* values);

    std::size_t count() const { return count_; }

    const std::int8_t* values(std::size_t row) const { return values_.data() + row * padded_; }
    const std::int32_t* starts(std::size_t row) const { return starts_.data() + row * chunks_ * kGroups; }
    const float* group_scales(std::size_t row) const { return group_scales_.data() + row * chunks_ * kGroups; }
    const std::int32_t* block_starts(std::size_t row) const { return block_starts_.data() + row * blocks_; }
    const float* scales(std::size_t row) const { return scales_.data() + row * blocks_; }

private:
    BlockMatrix form_{};
    std::size_t count_ = 0, blocks_ = 0, chunks_ = 0, padded_ = 0;
    std::vector<std::int8_t> values_;
    std::vector<std::int32_t> starts_, block_starts_;
    std::vector<float> scales_, group_scales_;
};

// Outputs that one call of `multiply` should be given, beside so many rows.
std::size_t outputs_per_task(const BlockMatrix& matrix, std::size_t rows);

// y[row * matrix.outputs + i] for outputs `first` to `last`, plus `bias` where it is given.
void multiply(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
              std::size_t last, float* y);

// Whether this processor multiplies faster than ONNX Runtime does.
bool has_fast_multiply();

}  // namespace qwenvl
