// The op as a host function.
#pragma once

#include <cuda_runtime_api.h>

#include "arguments.hpp"
#include "plan.hpp"

namespace qwenvl {

// One translation unit per head size (attention.cu with QWENVL_HEAD_DIM).
template <int D>
cudaError_t attend_with_head_dim(const Arguments& args, const AttentionPlan& plan, cudaStream_t stream);

// Launches the op's kernels. cudaErrorInvalidValue for sizes or a plan that they do not know.
cudaError_t attend(const Arguments& args, const AttentionPlan& plan, cudaStream_t stream);

}  // namespace qwenvl
