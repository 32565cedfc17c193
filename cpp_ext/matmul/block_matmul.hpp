// Rows of floats times a matrix of small integers whose blocks have a scale each. The matrix is read where it is
// stored.
//
// The rows are rounded to 8 bits, with one scale per block of each row, and products within a block are summed as
// integers: unsigned weights, as they are stored, times signed activations, which VNNI's instruction takes. A weight is
// its stored value less a zero; so each sum starts from minus the zero times the sum of the activations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "attention/half.hpp"
#include "simd/aligned.hpp"

namespace qwenvl {

// A row of weights is read in chunks of 64 bytes; a chunk is 16 groups of 4 bytes.
constexpr std::size_t kChunkBytes = 64, kGroups = 16, kGroupBytes = 4;

// W [outputs, inputs] as ONNX Runtime's MatMulNBits stores it: `packed` holds the values of each row in order, two
// 4-bit values per byte, the first in the low half. w = scale * (value - zero), zero = 2^(bits - 1).
struct BlockMatrix {
    std::size_t outputs, inputs;
    int bits;           // 4 or 8
    std::size_t block;  // inputs that share a scale: a power of two from 32 on that divides `inputs`
    const std::uint8_t* packed;
    const float* scales;  // [outputs, inputs / block]
    const Half* half_scales = nullptr;  // the same numbers in half the bytes, for few rows, where they are all halves

    std::size_t blocks() const { return inputs / block; }
    std::size_t row_bytes() const { return inputs * static_cast<std::size_t>(bits) / 8; }
    std::int32_t zero() const { return 1 << (bits - 1); }

    // Chunks per row; the last may be partial.
    std::size_t chunks() const { return (row_bytes() + kChunkBytes - 1) / kChunkBytes; }
    // Vectors of 64 activations per chunk.
    std::size_t planes() const { return bits == 4 ? 2 : 1; }
};

// A row of activations as the kernels read it, arranged by the chunks and groups of the weights. A block with NaN or
// infinity has the scale NaN, so every result that depends on it is NaN.
struct RoundedRow {
    std::int8_t* values;         // by chunk; for 4-bit weights first the 64 in even places, then the 64 in odd places
    std::int32_t* starts;        // by chunk and group: the value that a sum of products starts from
    float* group_scales;         // by chunk and group: the scale of the group's block
    std::int32_t* block_starts;  // by block: the value that the sum of the whole block starts from
    float* scales;               // by block
};

constexpr std::size_t kTileRows = 16, kPieceBytes = 64;

struct TileKernels;

// Rows of activations for matrices of one shape and precision.
class RoundedRows {
public:
    // Makes room for `count` rows. Then `round` makes each row; several threads may call it for different rows, but the
    // kTileRows rows from a multiple of it on belong to one thread, in order.
    void reset(const BlockMatrix& matrix, std::size_t count);
    void round(std::size_t row, const float* values);

    std::size_t count() const { return count_; }
    bool in_tiles() const { return tiles_ != nullptr; }  // arranged for products in tiles (block_kernels.hpp)

    const std::int8_t* values(std::size_t row) const { return values_.data() + row * padded_; }
    const std::int32_t* starts(std::size_t row) const { return starts_.data() + row * chunks_ * kGroups; }
    const float* group_scales(std::size_t row) const { return group_scales_.data() + row * chunks_ * kGroups; }
    const std::int32_t* block_starts(std::size_t row) const { return block_starts_.data() + row * blocks_; }
    const float* scales(std::size_t row) const { return scales_.data() + row * blocks_; }

private:
    void round_in_tile(std::size_t row, const float* values);

    BlockMatrix form_{};
    const TileKernels* tiles_ = nullptr;
    std::size_t count_ = 0, blocks_ = 0, chunks_ = 0, padded_ = 0;
    AlignedVector<std::int8_t> values_;
    AlignedVector<std::int32_t> starts_, block_starts_;
    AlignedVector<float> scales_, group_scales_;
};

// The number of outputs that one call of `multiply` should compute for these rows.
std::size_t outputs_per_task(const BlockMatrix& matrix, const RoundedRows& rows);

// Writes y[row * matrix.outputs + i] for outputs i from `first` to before `last`; adds `bias` unless it is null.
void multiply(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
              std::size_t last, float* y);

// Names of the kernels that this processor can run, best first; "portable" is the last. The first is in use; the others
// are for tests. QWENVL_TEST_MULTIPLY in the environment makes another the first choice of a process.
std::vector<std::string> multiply_variants();
std::string multiply_variant();
void use_multiply(const std::string& name);

}  // namespace qwenvl
