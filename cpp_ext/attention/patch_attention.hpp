// Attention of a picture tower: every patch of a segment reads all patches of it, without a cache.
//
// A segment is a whole picture, or a window of one. Keys are taken some at a time, and each query keeps a largest score,
// a sum and a row of values, so no matrix of all scores exists (Dao et al., FlashAttention).
//
// Two kinds of kernels. On rows: float32, the same bits with every instruction set. In AMX's tiles: queries, keys,
// values and the weights of values in bfloat16, sums and exponentials in float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "simd/aligned.hpp"

namespace qwenvl {

// Rows that attend to each other, and where they stand.
class Segments {
public:
    void clear() { rows_.clear(), starts_.assign(1, 0); }
    void add(std::uint32_t row) { rows_.push_back(row); }
    void close() { starts_.push_back(rows_.size()); }

    std::size_t count() const { return starts_.size() - 1; }
    std::size_t size(std::size_t segment) const { return starts_[segment + 1] - starts_[segment]; }
    const std::uint32_t* rows(std::size_t segment) const { return rows_.data() + starts_[segment]; }

private:
    std::vector<std::uint32_t> rows_;
    std::vector<std::size_t> starts_{0};
};

struct PatchCall {
    std::size_t heads, dim, patches;  // patches of a picture: row r has the rotary row r % patches
    const float* qkv;                 // [rows, 3 * heads * dim]: queries, keys, values
    const float *cos, *sin;           // [patches, dim / 2], or nullptr
    const Segments* segments;
    float* out;  // [rows, heads * dim]

    std::size_t width() const { return heads * dim; }
};

// Keys and values of a call in the order of the kernels that are in use.
class PreparedPatches {
public:
    // Makes room; then `prepare` makes each of `pieces()` parts, and then `attend` computes each of `tasks()` blocks of
    // queries. Several threads may call either for different parts.
    void reset(const PatchCall& call);
    std::size_t pieces() const { return pieces_.size(); }
    void prepare(const PatchCall& call, std::size_t piece);
    std::size_t tasks(const PatchCall& call) const { return call.heads * blocks_.size(); }
    void attend(const PatchCall& call, std::size_t task);

    struct Part {
        std::size_t segment, first, last;  // of the segment's rows
    };
    // Number of the first key of a segment, each of which begins at a multiple of kKeyChunk.
    std::size_t start(std::size_t segment) const { return starts_[segment]; }
    std::size_t keys() const { return starts_.back(); }

private:
    bool tiles_ = false;
    std::vector<std::size_t> starts_;
    std::vector<Part> pieces_, blocks_;
    AlignedVector<float> float_keys_;    // panels of kPanelKeys keys of a head, [dim padded to 16, kPanelKeys]
    AlignedVector<float> float_values_;  // [head, key, dim padded to 16]
    AlignedVector<std::uint16_t> tile_queries_, tile_keys_, tile_values_;  // patch_tiles.hpp
};

constexpr std::size_t kKeyChunk = 32;  // keys of a piece, and of a tile of weights of values

}  // namespace qwenvl
