// The kernel that serves a call, and the number of pieces of its keys. Depends on sizes only, never on the device or
// on what is in use, so that a captured graph and a plan built elsewhere compute the same, bit by bit.
#pragma once

#include "layout.hpp"

namespace qwenvl {

constexpr int kDecodeRows = 4;      // query rows a key/value head up to which reading the cache is what takes time
constexpr int kDecodeBlocks = 512;  // blocks to aim at: four for each processor of an H100
constexpr int kCounters = kDecodeBlocks / 2;  // heads of a call whose keys are cut into pieces
constexpr int kPrefillRows = 64;              // query rows of a block
constexpr int kWidePrefillRows = 128;         // fewer reads of keys and values, where that still leaves
constexpr int kWideBlocks = 256;              // so many blocks
constexpr int kSplitPrefillBlocks = 256;

struct AttentionPlan {
    int block_rows;  // query rows that a block takes: 1, 2 or 4 by the decode kernel, 64 or 128 by the prefill kernel
    int splits;      // pieces of the keys; partial results are combined when there are several
};

inline int query_rows(const Sizes& sizes) { return sizes.tokens * (sizes.heads / sizes.kv_heads); }

// Pieces that make about `blocks` blocks of `heads`, none shorter than `unit` keys.
inline int key_splits(int blocks, int heads, int capacity, int unit) {
    return larger(1, smaller(blocks / heads, divide_up(capacity, unit)));
}

inline AttentionPlan plan_attention(const Arguments& args) {
    const int heads = args.sizes.batch * args.sizes.kv_heads, rows = query_rows(args.sizes);
    if (rows <= kDecodeRows)
        return {rows <= 2 ? rows : kDecodeRows, key_splits(kDecodeBlocks, heads, args.sizes.capacity, kDecodeKeys)};
    if (rows <= kPrefillRows)
        return {kPrefillRows, key_splits(kSplitPrefillBlocks, heads, args.sizes.capacity, kKeyTile)};
    // Integers on their way into a tile take the registers that a wide block would need.
    const bool wide = !args.int8_cache && std::int64_t{heads} * divide_up(rows, kWidePrefillRows) >= kWideBlocks;
    return {wide ? kWidePrefillRows : kPrefillRows, 1};
}

// Room for the partial results of any call with this head size: splits > 1 only while splits * heads <= the block aim.
inline std::size_t workspace_bytes(int head_dim) {
    constexpr std::size_t kRows = larger(kDecodeBlocks * kDecodeRows, kSplitPrefillBlocks * kPrefillRows);
    return kRows * (static_cast<std::size_t>(head_dim) + 2) * sizeof(float);
}

// True if the kernels can follow a plan that was not made by plan_attention().
inline bool is_possible(const AttentionPlan& plan, const Arguments& args) {
    const int rows = query_rows(args.sizes);
    const bool fits =
        plan.block_rows <= kDecodeRows ? rows <= plan.block_rows : plan.splits == 1 || rows <= kPrefillRows;
    const bool decodes = plan.block_rows == 1 || plan.block_rows == 2 || plan.block_rows == kDecodeRows;
    const bool known =
        decodes || plan.block_rows == kPrefillRows || (plan.block_rows == kWidePrefillRows && !args.int8_cache);
    const std::size_t partials = static_cast<std::size_t>(args.sizes.batch) * args.sizes.kv_heads * rows * plan.splits;
    const int head_dim = args.sizes.head_dim;
    const bool combinable = args.sizes.batch * std::int64_t{args.sizes.kv_heads} <= kCounters &&
                            partials * (head_dim + 2) * sizeof(float) <= workspace_bytes(head_dim);
    return fits && known && plan.splits >= 1 && (plan.splits == 1 || combinable);
}

}  // namespace qwenvl
