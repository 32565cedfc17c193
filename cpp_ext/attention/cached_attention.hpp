// Causal attention of a call's tokens over a KV cache in halves: norm and rotary embedding of queries and keys, the
// cache's new rows, then softmax(q k^T / sqrt(dim)) v over the rows in use.
//
// Keys are taken in spans of kSpan cache rows. Each span gives a largest score, a sum and a row of values, and the
// spans' results are put together in order. A query attends to what the cache holds, also for tokens of its own call.
// So a result does not depend on how the tokens before it were divided into calls, nor on what is computed beside it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/half.hpp"

namespace qwenvl {

constexpr std::size_t kSpan = 128;

// A call of `tokens` new tokens in each of `batch` rows. heads is a multiple of kv_heads, dim one of 16.
struct AttentionShape {
    std::size_t batch, tokens, heads, kv_heads, dim, capacity;

    std::size_t width() const { return (heads + 2 * kv_heads) * dim; }
    std::size_t group() const { return heads / kv_heads; }
};

struct AttentionCall {
    AttentionShape shape;
    const float* qkv;              // [batch, tokens, width()]: queries, keys, values
    const float *cos, *sin;        // [batch, tokens, dim / 2]
    const std::int32_t* last;      // [batch], the cache row of each row's last token
    const float* query_scale;      // [batch, tokens], or nullptr
    const float *q_norm, *k_norm;  // weights of RMS norms of each head [dim], or nullptr
    float epsilon;
    Half *keys, *values;  // the cache [batch, kv_heads, capacity, dim]
    float* out;           // [batch, tokens, heads * dim]

    // The cache row of a token, counted over the whole batch.
    std::size_t place(std::size_t batch_row, std::size_t token) const {
        return static_cast<std::size_t>(last[batch_row]) + 1 + token - shape.tokens;
    }
};

// Rotates a token's queries into `queries` [batch, heads, tokens, dim], and writes its keys and values into the cache.
// Tokens are counted over the whole batch; several threads may call it for different ones.
void prepare_token(const AttentionCall& call, std::size_t token, float* queries);

// Queries that read the same keys, those of one kv head: number r is of that head's query r / tokens and of token
// r % tokens.
struct QueryBlock {
    std::size_t batch_row, kv_head, first, last;
};

constexpr std::size_t kMostQueries = 128;  // of a block

// Attends with the queries of a block, after every token of the call was prepared.
void attend(const AttentionCall& call, const float* queries, const QueryBlock& block);

// The same by spans, for few queries and many threads: results of each span, [kMostQueries] and
// [kMostQueries, dim], and the end that puts them together.
struct SpanResult {
    float most[kMostQueries], sum[kMostQueries];
    float* values;
};
std::size_t spans_of(const AttentionCall& call, const QueryBlock& block);
void attend_span(const AttentionCall& call, const float* queries, const QueryBlock& block, std::size_t span,
                 SpanResult& result);
void join_spans(const AttentionCall& call, const QueryBlock& block, const SpanResult* results, std::size_t count);

}  // namespace qwenvl
