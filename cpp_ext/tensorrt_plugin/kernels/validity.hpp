// Sizes that the kernels know.
#pragma once

#include <limits>

#include "arguments.hpp"

namespace qwenvl {

constexpr int kHeadDims[] = {64, 72, 80, 96, 104, 128};

inline bool is_head_dim(int head_dim) {
    for (const int known : kHeadDims)
        if (head_dim == known) return true;
    return false;
}

// Counts that the kernels keep in an int or a grid dimension must fit there.
inline bool are_valid(const Sizes& s) {
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max(), kMostGrid = 65535;
    return is_head_dim(s.head_dim) && s.batch > 0 && s.tokens > 0 && s.heads > 0 && s.kv_heads > 0 && s.capacity > 0 &&
           s.heads % s.kv_heads == 0 && s.batch <= kMostGrid && s.kv_heads <= kMostGrid &&
           std::int64_t{s.batch} * s.tokens <= kMost / (s.heads + 2 * s.kv_heads) && s.capacity <= kMost - s.tokens;
}

}  // namespace qwenvl
