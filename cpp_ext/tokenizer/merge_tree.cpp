#include "tokenizer/merge_tree.hpp"

#include "tokenizer/hash.hpp"

namespace qwenvl {
namespace {

constexpr int kPairBits = 21;  // 256 KiB

}  // namespace

MergeTree::MergeTree(std::size_t size) : pairs_(std::size_t{1} << (kPairBits - 6)) {
    std::size_t capacity = 512;
    while (capacity * 2 < size * 3) capacity *= 2;
    slots_.assign(capacity, {0, kNoToken});
    mask_ = capacity - 1;
    splits_.reserve(size);
}

inline std::uint64_t MergeTree::hash(TokenId left, TokenId right) {
    return fold_multiply((std::uint64_t{left} << 32 | right) ^ 0x9E3779B97F4A7C15u, 0xD6E8FEB86659FD93u);
}

void MergeTree::add(TokenId id, Split split) {
    splits_.push_back(split);
    const std::uint64_t h = hash(split.left, split.right), bit = h >> (64 - kPairBits);
    pairs_[bit >> 6] |= std::uint64_t{1} << (bit & 63);
    std::uint64_t at = h & mask_;
    while (slots_[at].id != kNoToken) at = (at + 1) & mask_;
    slots_[at] = {static_cast<std::uint32_t>(h >> 32), id};
}

inline TokenId MergeTree::merged(TokenId left, TokenId right) const {
    const std::uint64_t h = hash(left, right), bit = h >> (64 - kPairBits);
    if (!(pairs_[bit >> 6] >> (bit & 63) & 1)) return kNoToken;
    for (std::uint64_t at = h & mask_; slots_[at].id != kNoToken; at = (at + 1) & mask_) {
        if (slots_[at].tag != static_cast<std::uint32_t>(h >> 32)) continue;
        const Split split = splits_[slots_[at].id - kFirstMerge];
        if (split.left == left && split.right == right) return slots_[at].id;
    }
    return kNoToken;
}

// Undoes merges on both sides of the border, latest first: `left` and `right` are the tokens that touch it. A token
// exists from the merge that makes it, its own rank, until the merge that takes it into a larger one. The two are
// merged across the border if both exist when the rank of that merge comes; of equal ranks the leftmost is merged
// first.
bool MergeTree::stays_apart(TokenId left, TokenId right) const {
    TokenId left_ends = kNoToken, right_ends = kNoToken;
    while (true) {
        const TokenId across = merged(left, right);
        if (across < left_ends && across <= right_ends && across != kNoToken) return false;
        if (left > right) {
            if (left < kFirstMerge) return true;
            left_ends = left;
            left = splits_[left - kFirstMerge].right;
        } else {
            if (right < kFirstMerge) return true;
            right_ends = right;
            right = splits_[right - kFirstMerge].left;
        }
    }
}

}  // namespace qwenvl
