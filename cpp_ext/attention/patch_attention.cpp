#include "attention/patch_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/attention_rows.hpp"
#include "attention/patch_tiles.hpp"

namespace qwenvl {
namespace {

constexpr std::size_t kLanes = 16, kRowsTogether = 4;
constexpr std::size_t kQueries = 32;  // of a task
constexpr std::size_t kSpan = 128;    // keys whose scores are computed together
static_assert(kQueries == patch_tiles::kQueries && kQueries == kKeyChunk && kKeyChunk == kPanelKeys);

std::size_t padded(std::size_t dim) { return (dim + kLanes - 1) / kLanes * kLanes; }

// One head of a row, rotated and scaled; zeros after its numbers.
void prepare_row(const PatchCall& call, const float* x, std::size_t row, bool rotates, float scale, float* out) {
    const std::size_t half = call.dim / 2, at = row % call.patches * half;
    if (rotates && call.cos != nullptr) {
        rotate_head(x, call.cos + at, call.sin + at, half, scale, out);
    } else {
        for (std::size_t i = 0; i < call.dim; ++i) out[i] = x[i] * scale;
    }
    std::fill(out + call.dim, out + padded(call.dim), 0.0f);
}

struct Workspace {
    AlignedVector<float> queries, scores, values, totals;
};

// Queries of one head, computed in float32.
class RowBlock {
public:
    RowBlock(const PatchCall& call, std::size_t head, const std::uint32_t* rows, std::size_t count)
        : call_(call), head_(head), rows_(rows), count_(count), dim_(padded(call.dim)) {
        thread_local Workspace made;
        work_ = &made;
        work_->queries.resize(kQueries * dim_);
        work_->scores.resize(kQueries * kSpan);
        work_->values.resize(kQueries * dim_);
        work_->totals.assign(kQueries * dim_, 0.0f);
        const float scale = 1.0f / std::sqrt(static_cast<float>(call.dim));
        for (std::size_t r = 0; r < kQueries; ++r) {
            const std::size_t row = rows[std::min(r, count - 1)];
            const float* const from = call.qkv + row * 3 * call.width() + head * call.dim;
            prepare_row(call, from, row, true, scale, work_->queries.data() + r * dim_);
        }
        std::fill(most_, most_ + kQueries, -std::numeric_limits<float>::infinity());
    }

    void read(const float* keys, const float* values, std::size_t keys_count) {
        for (std::size_t at = 0; at < keys_count; at += kSpan) {
            read_span(keys + at * dim_, values + at * dim_, std::min(keys_count - at, kSpan));
        }
    }

    void write() const {
        for (std::size_t r = 0; r < count_; ++r) {
            float* const to = call_.out + rows_[r] * call_.width() + head_ * call_.dim;
            for (std::size_t i = 0; i < call_.dim; ++i) to[i] = work_->totals[r * dim_ + i] / sum_[r];
        }
    }

private:
    void read_span(const float* keys, const float* values, std::size_t count) {
        const std::size_t rows = (count_ + kRowsTogether - 1) / kRowsTogether * kRowsTogether;
        float *const scores = work_->scores.data(), *const found = work_->values.data();
        Exponentials exponentials[kQueries];
        std::fill(found, found + rows * dim_, 0.0f);
        for (std::size_t r = 0; r < rows; r += kRowsTogether) {
            const float* const q = work_->queries.data() + r * dim_;
            float *const to = scores + r * kSpan, *const sums = found + r * dim_;
            for (std::size_t from = 0; from < count; from += kPanelKeys) {
                for (std::size_t i = 0; i < kRowsTogether; i += 2) {
                    float* const at = to + i * kSpan + from;
                    score_panel({q + i * dim_, q + (i + 1) * dim_}, keys + from * dim_, dim_, {at, at + kSpan});
                }
            }
            for (std::size_t i = 0; i < kRowsTogether; ++i) {
                exponentials[r + i] = take_exponentials(to + i * kSpan, count);
            }
            add_values({to, to + kSpan, to + 2 * kSpan, to + 3 * kSpan}, values, count, dim_,
                       {sums, sums + dim_, sums + 2 * dim_, sums + 3 * dim_});
        }
        for (std::size_t r = 0; r < count_; ++r) join(r, exponentials[r], found + r * dim_);
    }

    void join(std::size_t r, const Exponentials& span, const float* values) {
        const float larger = span.most > most_[r] ? span.most : most_[r];
        const float kept = exponential(most_[r] - larger), taken = exponential(span.most - larger);
        sum_[r] = sum_[r] * kept + span.sum * taken;
        merge_row(values, taken, kept, dim_, work_->totals.data() + r * dim_);
        most_[r] = larger;
    }

    const PatchCall& call_;
    std::size_t head_;
    const std::uint32_t* rows_;
    std::size_t count_, dim_;
    Workspace* work_;
    float most_[kQueries], sum_[kQueries] = {};
};

std::vector<PreparedPatches::Part> parts(const Segments& segments, std::size_t size) {
    std::vector<PreparedPatches::Part> found;
    for (std::size_t s = 0; s < segments.count(); ++s) {
        for (std::size_t first = 0; first < segments.size(s); first += size) {
            found.push_back({s, first, std::min(first + size, segments.size(s))});
        }
    }
    return found;
}

}  // namespace

void PreparedPatches::reset(const PatchCall& call) {
    tiles_ = patch_tiles::supported();
    starts_.assign(1, 0);
    for (std::size_t s = 0; s < call.segments->count(); ++s) {
        const std::size_t chunks = (call.segments->size(s) + kKeyChunk - 1) / kKeyChunk;
        starts_.push_back(starts_.back() + chunks * kKeyChunk);
    }
    pieces_ = parts(*call.segments, kKeyChunk);
    blocks_ = parts(*call.segments, kQueries);
    if (tiles_) {
        const patch_tiles::Layout layout(call.dim);
        tile_queries_.resize(call.heads * keys() / kKeyChunk * layout.key_numbers());
        tile_keys_.resize(call.heads * keys() / kKeyChunk * layout.key_numbers());
        tile_values_.resize(call.heads * keys() / kKeyChunk * layout.value_numbers());
    } else {
        float_keys_.resize(call.heads * keys() * padded(call.dim));
        float_values_.resize(call.heads * keys() * padded(call.dim));
    }
}

void PreparedPatches::prepare(const PatchCall& call, std::size_t piece) {
    const Part part = pieces_[piece];
    const std::uint32_t* const rows = call.segments->rows(part.segment) + part.first;
    const std::size_t key = start(part.segment) + part.first, count = part.last - part.first;
    const std::size_t dim = padded(call.dim), width = call.width();
    const patch_tiles::Layout layout(call.dim);
    thread_local AlignedVector<float> together;
    together.resize(kKeyChunk * dim);
    for (std::size_t head = 0; head < call.heads; ++head) {
        const std::size_t place = head * keys() + key;
        if (tiles_) {
            const std::size_t chunk = place / kKeyChunk;
            patch_tiles::prepare(call, head, rows, count,
                                 {tile_queries_.data() + chunk * layout.key_numbers(),
                                  tile_keys_.data() + chunk * layout.key_numbers(),
                                  tile_values_.data() + chunk * layout.value_numbers()});
            continue;
        }
        for (std::size_t k = 0; k < count; ++k) {
            const float* const from = call.qkv + rows[k] * 3 * width + width + head * call.dim;
            prepare_row(call, from, rows[k], true, 1.0f, together.data() + k * dim);
            prepare_row(call, from + width, rows[k], false, 1.0f, float_values_.data() + (place + k) * dim);
        }
        make_panel(together.data(), count, dim, float_keys_.data() + place * dim);
    }
}

void PreparedPatches::attend(const PatchCall& call, std::size_t task) {
    const std::size_t head = task / blocks_.size();
    const Part block = blocks_[task % blocks_.size()];
    const std::uint32_t* const rows = call.segments->rows(block.segment) + block.first;
    const std::size_t place = head * keys() + start(block.segment), count = call.segments->size(block.segment);
    if (tiles_) {
        const patch_tiles::Layout layout(call.dim);
        const std::size_t chunk = place / kKeyChunk, query_chunk = chunk + block.first / kKeyChunk;
        patch_tiles::attend(call, head, rows, block.last - block.first,
                            {tile_queries_.data() + query_chunk * layout.key_numbers(),
                             tile_keys_.data() + chunk * layout.key_numbers(),
                             tile_values_.data() + chunk * layout.value_numbers()},
                            count);
        return;
    }
    const std::size_t dim = padded(call.dim);
    RowBlock found(call, head, rows, block.last - block.first);
    found.read(float_keys_.data() + place * dim, float_values_.data() + place * dim, count);
    found.write();
}

}  // namespace qwenvl
