// The inner loops of block_matmul, by instruction set. All give the same bits.
#pragma once

#include "matmul/block_matmul.hpp"

namespace qwenvl {

constexpr std::size_t kFewRows = 4;     // up to so many rows weights are unpacked in registers, above it into a panel
constexpr std::size_t kPanelRows = 32;  // outputs of a panel
constexpr float kMost = 127;            // largest rounded activation

// Rounds one row of `matrix.inputs` floats; the last chunk is padded with zeros.
using RoundRow = void(const BlockMatrix& matrix, const float* values, const RoundedRow& out);
// Computes outputs [first, last) of all rows.
using Multiply = void(const BlockMatrix&, const RoundedRows&, const float* bias, std::size_t first, std::size_t last,
                      float* y);

namespace portable {
RoundRow round_row;
Multiply multiply_few;    // of up to kFewRows rows
Multiply multiply_panel;  // of up to kPanelRows outputs
}  // namespace portable

#if defined(__x86_64__)
namespace vnni {
RoundRow round_row;
Multiply multiply_few;    // of up to kFewRows rows
Multiply multiply_panel;  // of up to kPanelRows outputs
bool supported();
}  // namespace vnni
#endif

}  // namespace qwenvl
