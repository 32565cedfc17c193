// Offsets into the tensors, and the keys that a block of threads is to read.
#pragma once

#include "arguments.hpp"

#ifdef __CUDACC__
#define QWENVL_HOST_DEVICE __host__ __device__
#else
#define QWENVL_HOST_DEVICE
#endif

namespace qwenvl {

QWENVL_HOST_DEVICE constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }
QWENVL_HOST_DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }
QWENVL_HOST_DEVICE constexpr int larger(int a, int b) { return a > b ? a : b; }

// Query heads that share a key/value head, times T tokens, are the rows that one pass over its keys serves:
// row r is token r / group of query head kv_head * group + r % group.
struct QueryRows {
    Sizes sizes;
    int batch, kv_head;

    QWENVL_HOST_DEVICE int group() const { return sizes.heads / sizes.kv_heads; }
    QWENVL_HOST_DEVICE int count() const { return sizes.tokens * group(); }
    QWENVL_HOST_DEVICE int token(int row) const { return row / group(); }
    QWENVL_HOST_DEVICE int head(int row) const { return kv_head * group() + row % group(); }
    // Index of the row's token in [B, T].
    QWENVL_HOST_DEVICE std::int64_t token_index(int row) const {
        return static_cast<std::int64_t>(batch) * sizes.tokens + token(row);
    }
    // Offset of the row in qkv [B, T, (NH + 2 KVH) D] and in out [B, T, NH D].
    QWENVL_HOST_DEVICE std::int64_t query_offset(int row) const {
        const int width = sizes.heads + 2 * sizes.kv_heads;
        return (token_index(row) * width + head(row)) * sizes.head_dim;
    }
    QWENVL_HOST_DEVICE std::int64_t out_offset(int row) const {
        return (token_index(row) * sizes.heads + head(row)) * sizes.head_dim;
    }
    // Index of the row in [B, KVH, rows], the order in which partial results lie.
    QWENVL_HOST_DEVICE std::int64_t index(int row) const {
        return (static_cast<std::int64_t>(batch) * sizes.kv_heads + kv_head) * count() + row;
    }
};

// Index of cache position 0 of a head in [B, KVH, C].
QWENVL_HOST_DEVICE inline std::int64_t cache_index(const Sizes& sizes, int batch, int kv_head) {
    return (static_cast<std::int64_t>(batch) * sizes.kv_heads + kv_head) * sizes.capacity;
}

// Indices are inputs and may be anything: brought into [low, high].
QWENVL_HOST_DEVICE inline int clamped(std::int64_t index, int low, int high) {
    return static_cast<int>(index < low ? low : index > high ? high : index);
}

// The cache position of a row's first new token. Token t sees positions up to this + t.
QWENVL_HOST_DEVICE inline int first_position(const Sizes& sizes, std::int64_t write_index) {
    return clamped(write_index, -sizes.tokens, sizes.capacity);
}

// The number of cache positions in use once this call's tokens are written.
QWENVL_HOST_DEVICE inline int used_keys(const Sizes& sizes, int first_position) {
    return smaller(first_position + sizes.tokens, sizes.capacity);
}

constexpr int kKeyTile = 64;     // prefill takes keys in tiles of this many,
constexpr int kDecodeKeys = 32;  // decoding in multiples of this many, which are one turn of a block's loop at most

// The keys in use, cut into at most `splits` equal pieces of a multiple of `unit`; pieces after the last key are empty.
struct KeySplit {
    int used, piece;

    QWENVL_HOST_DEVICE KeySplit(int used_keys, int splits, int unit)
        : used(used_keys), piece(divide_up(divide_up(used_keys, splits), unit) * unit) {}
    QWENVL_HOST_DEVICE int begin(int split) const { return split * piece; }
    QWENVL_HOST_DEVICE int end(int split) const { return smaller(used, (split + 1) * piece); }
    QWENVL_HOST_DEVICE int filled() const { return used > 0 ? divide_up(used, piece) : 0; }
};

}  // namespace qwenvl
