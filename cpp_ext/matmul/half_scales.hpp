// Scales of weights in half the bytes: a tenth of what a token reads of 4-bit weights in blocks of 32.
#pragma once

#include <cstddef>

#include "attention/half.hpp"
#include "simd/aligned.hpp"

namespace qwenvl {

// The same numbers as halves; empty unless every one of them is a half exactly.
AlignedVector<Half> halves_of(const float* scales, std::size_t count);

}  // namespace qwenvl
