// The op in plain C++ on host memory, in double precision: what the kernels are compared with where there is no GPU.
#pragma once

#include "../kernels/arguments.hpp"

namespace qwenvl {

// Pointers in `args` are host memory; `workspace` is not used. Rounds where the op's definition says so (rotated
// queries and keys, cache, output), nowhere else.
void reference_attention(const Arguments& args);

}  // namespace qwenvl
