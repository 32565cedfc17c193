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
};

// Rows of activations as the kernels read them, for matrices of one form.
class RoundedRows {
public:
    // Room for `count` rows, which are then made by `round`, from several threads if need be.
    void reset(const BlockMatrix& matrix, std::size_t count);
    void round(std::size_t row, const float* values);

    std::size_t count() const { return count_; }

    // A chunk is what 64 bytes of weights stand for: of 4-bit values 64 in even places, then 64 in odd places.
    const std::int8_t* values(std::size_t row) const { return values_.data() + row * padded_; }
    // By chunk and group of four bytes: the integer that a sum starts from.
    const std::int32_t* starts(std::size_t row) const { return starts_.data() + row * chunks_ * 16; }
    // By block: the same for the block's whole sum; and its scale.
    const std::int32_t* block_starts(std::size_t row) const { return block_starts_.data() + row * blocks_; }
    const float* scales(std::size_t row) const { return scales_.data() + row * blocks_; }
    // By chunk and group of four bytes: the scale of the group's block.
    const float* group_scales(std::size_t row) const { return group_scales_.data() + row * chunks_ * 16; }

private:
    std::size_t count_ = 0, inputs_ = 0, block_ = 0, blocks_ = 0, planes_ = 0, chunks_ = 0, padded_ = 0;
    std::int32_t zero_ = 0;
    std::vector<std::int8_t> values_;
    std::vector<std::int32_t> starts_, block_starts_;
    std::vector<float> scales_, group_scales_;
};

// Outputs that one call of `multiply` should be given: more than these share nothing.
std::size_t outputs_per_task(std::size_t rows);

// y[row * matrix.outputs + i] for outputs `first` to `last`, plus `bias` where it is given.
void multiply(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
              std::size_t last, float* y);

// Whether this processor multiplies faster than ONNX Runtime does.
bool has_fast_multiply();

}  // namespace qwenvl
