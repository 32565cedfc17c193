// The inner loops of block_matmul, by instruction set. All give the same bits.
#pragma once

#include <algorithm>
#include <cstring>

#include "matmul/amx.hpp"
#include "matmul/block_matmul.hpp"

namespace qwenvl {

constexpr std::size_t kFewRows = 4;       // up to so many rows weights are unpacked in registers, above it into a panel
constexpr std::size_t kPanelRows = 32;    // outputs of a panel
constexpr std::size_t kTileOutputs = 64;  // outputs of a task in tiles
constexpr std::size_t kWordBytes = kPanelRows * kGroupBytes;  // of a panel: one group of all its outputs
constexpr std::size_t kAhead = 16384;  // weights by which fetching from memory is ahead of their use
constexpr float kMost = 127;           // largest rounded activation
constexpr float kTiny = 1e-36f;        // a block whose largest activation is not above it counts as zeros

// The factor that rounds a block whose largest activation is `most`; finite for every `most` above kTiny.
inline float inverse_of(float most) { return most > kTiny ? kMost / most : 0.0f; }

// Rounds one row of `matrix.inputs` floats; the last chunk is padded with zeros.
using RoundRow = void(const BlockMatrix& matrix, const float* values, const RoundedRow& out);
// Computes outputs [first, last) of all rows.
using Multiply = void(const BlockMatrix&, const RoundedRows&, const float* bias, std::size_t first, std::size_t last,
                      float* y);

// Products of many rows in tiles of kTileRows rows. Rows that were rounded for them lie in another order: by tile,
// piece (kPieceBytes of a row) and row; their scales by tile, block and row (RoundedRows::values and scales of a tile's
// first row). What is missing of the last tile is zero.
struct TileKernels {
    std::size_t fewest;  // rows; from so many on they are faster than a panel
    std::size_t (*row_bytes)(const BlockMatrix&);
    // Rounds a row to its place in a tile; `lane` is its number there.
    void (*round_row)(const BlockMatrix&, const float* values, std::size_t lane, std::int8_t* tile, float* scales);
    Multiply* multiply;
};

// The kernels of one instruction set.
struct MultiplyKernels {
    const char* name;
    bool (*supported)();
    RoundRow* round_row;
    Multiply* few;    // of up to kFewRows rows
    Multiply* panel;  // of up to kPanelRows outputs
    const TileKernels* tiles = nullptr;
};

extern const MultiplyKernels kPortableKernels;
#if defined(__x86_64__)
extern const MultiplyKernels kAvx512VnniKernels, kAvxVnniKernels, kAvx2Kernels;
#if defined(QWENVL_HAS_AMX)
extern const MultiplyKernels kAmxKernels;
#endif
#elif defined(__aarch64__)
extern const MultiplyKernels kNeonI8mmKernels, kNeonDotKernels;
#endif

// The place of a row of activations.
struct RowValues {
    RowValues() = default;
    RowValues(const RoundedRows& rows, std::size_t row)
        : values(rows.values(row)), starts(rows.starts(row)), scales(rows.group_scales(row)) {}

    const std::int8_t* values;
    const std::int32_t* starts;
    const float* scales;
};

inline void prefetch(const void* at) { __builtin_prefetch(at, 0, 2); }

// The relation of the chunks and the blocks of a row of weights.
struct RowShape {
    explicit RowShape(const BlockMatrix& matrix)
        : bytes(matrix.row_bytes()),
          blocks(matrix.blocks()),
          whole(bytes / kChunkBytes),
          last_bytes(bytes % kChunkBytes),
          shared(std::max<std::size_t>(matrix.block / (matrix.planes() * kChunkBytes), 1)),
          step(std::max<std::size_t>(matrix.planes() * kChunkBytes / matrix.block, 1)),
          scales_ahead(kAhead / matrix.block) {}

    // Fetches the scales that are used kAhead weights after a row whose first are `scales`.
    template <typename Scale>
    void prefetch_scales(const Scale* scales) const {
        const char* const at = reinterpret_cast<const char*>(scales + scales_ahead);
        for (std::size_t i = 0; i < blocks * sizeof(Scale); i += 64) prefetch(at + i);
    }

    std::size_t bytes, blocks;
    std::size_t whole, last_bytes;  // whole chunks, and the bytes of a partial one after them
    std::size_t shared, step;       // chunks of a block, blocks of a chunk; one of both is 1
    std::size_t scales_ahead;
};

// A copy of the partial chunk at the end of a row, with zeros after it. Scales are floats or halves.
template <typename Scale>
struct LastChunk {
    void copy(const std::uint8_t* from, const Scale* from_scales, const RowShape& shape) {
        std::memcpy(packed, from, shape.last_bytes);
        std::memcpy(scales, from_scales, (shape.blocks - shape.whole * shape.step) * sizeof(Scale));
    }

    alignas(64) std::uint8_t packed[kChunkBytes] = {};
    Scale scales[4] = {};
};

// Fills what follows from a row's scales and starts: the groups' scales and the blocks' starts.
inline void spread_blocks(const BlockMatrix& matrix, const RoundedRow& out) {
    const std::size_t groups = matrix.block / (kGroupBytes * matrix.planes());  // of a block
    for (std::size_t b = 0; b < matrix.blocks(); ++b) {
        std::int32_t start = 0;
        for (std::size_t i = b * groups; i < (b + 1) * groups; ++i) {
            start += out.starts[i];
            out.group_scales[i] = out.scales[b];
        }
        out.block_starts[b] = start;
    }
    std::fill(out.group_scales + matrix.blocks() * groups, out.group_scales + matrix.chunks() * kGroups, 0.0f);
}

}  // namespace qwenvl
