#include "attention/cached_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention/attention_rows.hpp"
#include "matmul/layer_rows.hpp"
#include "simd/aligned.hpp"

namespace qwenvl {
namespace {

constexpr std::size_t kKeysTogether = 32;  // their numbers in float32 stay in the first cache while queries pass
constexpr std::size_t kRowsTogether = 4;   // queries that share a load of keys or values
constexpr std::size_t kFew = 4;            // so many queries widen keys and values as they read them

// The queries of a block that see keys of a span: where they are, how many keys each sees.
struct SpanQueries {
    const float* query[kMostQueries];
    std::size_t seen[kMostQueries];
    std::size_t count, most_seen;
};

// The cache rows that a query sees.
std::size_t rows_of(const AttentionCall& call, const QueryBlock& block, std::size_t query) {
    return call.place(block.batch_row, query % call.shape.tokens) + 1;
}

SpanQueries queries_of(const AttentionCall& call, const float* queries, const QueryBlock& block, std::size_t span) {
    const AttentionShape& shape = call.shape;
    const std::size_t head = block.batch_row * shape.kv_heads + block.kv_head;
    const float* const from = queries + head * shape.group() * shape.tokens * shape.dim;
    SpanQueries found{};
    for (std::size_t r = block.first; r < block.last; ++r) {
        const std::size_t rows = rows_of(call, block, r), start = span * kSpan;
        const std::size_t seen = std::min(rows > start ? rows - start : 0, kSpan);
        found.query[found.count] = from + r * shape.dim;
        found.seen[found.count++] = seen;
        found.most_seen = std::max(found.most_seen, seen);
    }
    return found;
}

struct Workspace {
    AlignedVector<float> tile, scores, values, totals;

    void reserve(std::size_t dim) {
        tile.resize(kSpan * dim);
        scores.resize(kMostQueries * kSpan);
        values.resize(kMostQueries * dim);
        totals.resize(kMostQueries * dim);
    }
};

Workspace& workspace() {
    thread_local Workspace made;
    return made;
}

// Calls one(query, from, count) and four(queries, from, count) so that each query meets each key that it sees, some
// keys at a time, four queries together where all of them see the keys.
template <typename One, typename Four>
void for_keys(const SpanQueries& queries, One one, Four four) {
    for (std::size_t from = 0; from < queries.most_seen; from += kKeysTogether) {
        const auto here = [&](std::size_t r) {
            return std::min(queries.seen[r] > from ? queries.seen[r] - from : 0, kKeysTogether);
        };
        for (std::size_t r = 0; r < queries.count; r += kRowsTogether) {
            const std::size_t last = std::min(r + kRowsTogether, queries.count);
            std::size_t all = last - r == kRowsTogether ? kKeysTogether : 0;
            for (std::size_t i = r; i < last; ++i) all = std::min(all, here(i) / 4 * 4);
            if (all > 0) four(r, from, all);
            for (std::size_t i = r; i < last; ++i) {
                if (here(i) > all) one(i, from + all, here(i) - all);
            }
        }
    }
}

void span_of(const AttentionCall& call, const SpanQueries& queries, const QueryBlock& block, std::size_t span,
             float* most, float* sums, float* out) {
    const std::size_t dim = call.shape.dim;
    const std::size_t head = block.batch_row * call.shape.kv_heads + block.kv_head;
    const std::size_t start = (head * call.shape.capacity + span * kSpan) * dim;
    const Half *const keys = call.keys + start, *const values = call.values + start;
    Workspace& work = workspace();
    float *const tile = work.tile.data(), *const scores = work.scores.data();
    std::fill(out, out + queries.count * dim, 0.0f);
    const auto normalise = [&](std::size_t r) {
        const Exponentials found = take_exponentials(scores + r * kSpan, queries.seen[r]);
        most[r] = found.most, sums[r] = found.sum;
    };
    if (queries.count <= kFew) {
        // The values are fetched while the keys are read, and the next span's keys while the values are.
        const Half* next = values;
        for (std::size_t r = 0; r < queries.count; ++r) {
            if (queries.seen[r] == 0) continue;
            score_keys(queries.query[r], keys, queries.seen[r], dim, scores + r * kSpan, next);
            normalise(r);
            const bool is_full = queries.seen[r] == kSpan && (span + 1) * kSpan < call.shape.capacity;
            add_values(scores + r * kSpan, values, queries.seen[r], dim, out + r * dim,
                       next != nullptr && is_full ? keys + kSpan * dim : nullptr);
            next = nullptr;
        }
        return;
    }
    for (std::size_t from = 0; from < queries.most_seen; from += kPanelKeys) {
        make_panel(keys + from * dim, queries.most_seen - from, dim, tile);
        for (std::size_t r = 0; r < queries.count; r += 2) {
            const std::size_t other = std::min(r + 1, queries.count - 1);
            if (std::max(queries.seen[r], queries.seen[other]) <= from) continue;
            score_panel({queries.query[r], queries.query[other]}, tile, dim,
                        {scores + r * kSpan + from, scores + other * kSpan + from});
        }
    }
    for (std::size_t r = 0; r < queries.count; ++r) {
        if (queries.seen[r] > 0) normalise(r);
    }
    widen_row(values, queries.most_seen * dim, tile);
    for_keys(
        queries,
        [&](std::size_t r, std::size_t from, std::size_t count) {
            add_values(scores + r * kSpan + from, tile + from * dim, count, dim, out + r * dim);
        },
        [&](std::size_t r, std::size_t from, std::size_t count) {
            const float* const weights = scores + r * kSpan + from;
            float* const to = out + r * dim;
            add_values({weights, weights + kSpan, weights + 2 * kSpan, weights + 3 * kSpan}, tile + from * dim, count,
                       dim, {to, to + dim, to + 2 * dim, to + 3 * dim});
        });
}

// The result of the spans of a query so far.
struct Total {
    float most = -std::numeric_limits<float>::infinity(), sum = 0;

    void join(float span_most, float span_sum, const float* span_values, std::size_t dim, float* values) {
        const float larger = span_most > most ? span_most : most;
        const float kept = exponential(most - larger), taken = exponential(span_most - larger);
        sum = sum * kept + span_sum * taken;
        merge_row(span_values, taken, kept, dim, values);
        most = larger;
    }
};

void write_result(const AttentionCall& call, const QueryBlock& block, std::size_t r, const Total& total,
                  const float* values) {
    const AttentionShape& shape = call.shape;
    const std::size_t query = block.first + r, token = block.batch_row * shape.tokens + query % shape.tokens;
    const std::size_t head = block.kv_head * shape.group() + query / shape.tokens;
    float* const to = call.out + (token * shape.heads + head) * shape.dim;
    for (std::size_t i = 0; i < shape.dim; ++i) to[i] = values[i] / total.sum;
}

}  // namespace

void prepare_token(const AttentionCall& call, std::size_t token, float* queries) {
    const AttentionShape& shape = call.shape;
    const std::size_t dim = shape.dim, row = token / shape.tokens;
    const float *const from = call.qkv + token * shape.width(), *const cos = call.cos + token * dim / 2,
                       *const sin = call.sin + token * dim / 2;
    thread_local std::vector<float> head;
    head.resize(2 * dim);
    const auto rotated = [&](const float* x, const float* norm, float scale, float* out) {
        if (norm != nullptr) rms_norm(x, norm, dim, call.epsilon, head.data());
        rotate_head(norm == nullptr ? x : head.data(), cos, sin, dim / 2, scale, out);
    };
    const float scale =
        (call.query_scale == nullptr ? 1.0f : call.query_scale[token]) / std::sqrt(static_cast<float>(dim));
    for (std::size_t i = 0; i < shape.heads; ++i) {
        const std::size_t to = (row * shape.heads + i) * shape.tokens + token % shape.tokens;
        rotated(from + i * dim, call.q_norm, scale, queries + to * dim);
    }
    const float* const keys = from + shape.heads * dim;
    const float* const values = keys + shape.kv_heads * dim;
    for (std::size_t i = 0; i < shape.kv_heads; ++i) {
        const std::size_t head_row = row * shape.kv_heads + i;
        const std::size_t to = (head_row * shape.capacity + call.place(row, token % shape.tokens)) * dim;
        rotated(keys + i * dim, call.k_norm, 1.0f, head.data() + dim);
        narrow_row(head.data() + dim, dim, call.keys + to);
        narrow_row(values + i * dim, dim, call.values + to);
    }
}

std::size_t spans_of(const AttentionCall& call, const QueryBlock& block) {
    std::size_t rows = 0;
    for (std::size_t r = block.first; r < block.last; ++r) rows = std::max(rows, rows_of(call, block, r));
    return (rows + kSpan - 1) / kSpan;
}

void attend_span(const AttentionCall& call, const float* queries, const QueryBlock& block, std::size_t span,
                 SpanResult& result) {
    workspace().reserve(call.shape.dim);
    span_of(call, queries_of(call, queries, block, span), block, span, result.most, result.sum, result.values);
}

void join_spans(const AttentionCall& call, const QueryBlock& block, const SpanResult* results, std::size_t count) {
    const std::size_t dim = call.shape.dim;
    Workspace& work = workspace();
    work.reserve(dim);
    for (std::size_t r = 0; r < block.last - block.first; ++r) {
        const std::size_t rows = rows_of(call, block, block.first + r);
        std::fill_n(work.totals.data(), dim, 0.0f);
        Total total;
        for (std::size_t span = 0; span < std::min(count, (rows - 1) / kSpan + 1); ++span) {
            const SpanResult& found = results[span];
            total.join(found.most[r], found.sum[r], found.values + r * dim, dim, work.totals.data());
        }
        write_result(call, block, r, total, work.totals.data());
    }
}

void attend(const AttentionCall& call, const float* queries, const QueryBlock& block) {
    const std::size_t dim = call.shape.dim, count = block.last - block.first;
    Workspace& work = workspace();
    work.reserve(dim);
    std::fill_n(work.totals.data(), count * dim, 0.0f);
    Total totals[kMostQueries];
    const std::size_t spans = spans_of(call, block);
    for (std::size_t span = 0; span < spans; ++span) {
        const SpanQueries seeing = queries_of(call, queries, block, span);
        float most[kMostQueries], sums[kMostQueries];
        span_of(call, seeing, block, span, most, sums, work.values.data());
        for (std::size_t r = 0; r < count; ++r) {
            if (seeing.seen[r] == 0) continue;
            totals[r].join(most[r], sums[r], work.values.data() + r * dim, dim, work.totals.data() + r * dim);
        }
    }
    for (std::size_t r = 0; r < count; ++r) write_result(call, block, r, totals[r], work.totals.data() + r * dim);
}

}  // namespace qwenvl
