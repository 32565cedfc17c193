/* The op behind a C interface, for callers without TensorRT (tests, benchmarks): pointers in, launches out. */
#pragma once

#include <cuda_runtime_api.h>

#include "arguments.hpp"

#define QWENVL_EXPORT __attribute__((visibility("default")))

extern "C" {

/* Launches the op on `stream` and returns a cudaError_t; cudaErrorInvalidValue for sizes that it does not know. */
QWENVL_EXPORT int qwenvl_kv_cache_attention(const qwenvl::Arguments* args, cudaStream_t stream);

/* The same by a plan of the caller's (kernels/plan.hpp): query rows of a block, and pieces of the keys. */
QWENVL_EXPORT int qwenvl_kv_cache_attention_planned(const qwenvl::Arguments* args, int block_rows, int splits,
                                                    cudaStream_t stream);

/* Bytes of workspace that any call with this head size needs; 0 for a head size that it does not know. */
QWENVL_EXPORT std::size_t qwenvl_kv_cache_attention_workspace(int head_dim);

/* Number of Arguments::counters. */
QWENVL_EXPORT int qwenvl_kv_cache_attention_counters();

/* sizeof(Arguments), for callers that fill the struct by hand. */
QWENVL_EXPORT std::size_t qwenvl_kv_cache_attention_arguments_size();
}
