#include "c_api.h"

#include "attention.hpp"
#include "validity.hpp"

int qwenvl_kv_cache_attention(const qwenvl::Arguments* args, cudaStream_t stream) {
    if (!qwenvl::are_valid(args->sizes)) return cudaErrorInvalidValue;
    return qwenvl::attend(*args, qwenvl::plan_attention(*args), stream);
}

int qwenvl_kv_cache_attention_planned(const qwenvl::Arguments* args, int block_rows, int splits, cudaStream_t stream) {
    if (!qwenvl::are_valid(args->sizes)) return cudaErrorInvalidValue;
    return qwenvl::attend(*args, {block_rows, splits}, stream);
}

std::size_t qwenvl_kv_cache_attention_workspace(int head_dim) {
    return qwenvl::is_head_dim(head_dim) ? qwenvl::workspace_bytes(head_dim) : 0;
}

int qwenvl_kv_cache_attention_counters() { return qwenvl::kCounters; }

std::size_t qwenvl_kv_cache_attention_arguments_size() { return sizeof(qwenvl::Arguments); }
