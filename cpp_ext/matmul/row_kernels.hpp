// The kernels of row_matmul. Weights of a task are packed as both VNNI and AMX read them: by 16 outputs and group of
// four inputs, 64 bytes each; what is missing is zero.
#pragma once

#include "matmul/amx.hpp"
#include "matmul/row_matmul.hpp"

namespace qwenvl::row_kernels {

using Multiply = void(const RowMatrix&, const ByteRows&, const float* bias, std::size_t first, std::size_t last,
                      float* y, const RowsDone& done);

Multiply portable;
#if defined(__x86_64__)
Multiply vnni;
#if defined(QWENVL_HAS_AMX)
Multiply amx;
#endif
#endif

}  // namespace qwenvl::row_kernels
