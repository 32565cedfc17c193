#include "qwenvl/merge_tree.hpp"

#include "qwenvl/hash.hpp"
#include "qwenvl/symbols.hpp"

namespace qwenvl {
namespace {

constexpr int kPairBits = 21, kBorderBits = 20, kInnerBits = 17;  // 256, 128 and 16 KiB

std::vector<std::uint64_t> make_filter(int bits) { return std::vector<std::uint64_t>(std::size_t{1} << (bits - 6)); }

template <int bits>
void set_bit(std::vector<std::uint64_t>& filter, std::uint64_t hash) {
    const std::uint64_t bit = hash >> (64 - bits);
    filter[bit >> 6] |= std::uint64_t{1} << (bit & 63);
}

template <int bits>
bool has_bit(const std::vector<std::uint64_t>& filter, std::uint64_t hash) {
    const std::uint64_t bit = hash >> (64 - bits);
    return filter[bit >> 6] >> (bit & 63) & 1;
}

std::uint64_t border_hash(Symbol before, Symbol after) {
    return before * 0x9E3779B97F4A7C15u + after * 0xC2B2AE3D27D4EB4Fu;
}

}  // namespace

MergeTree::MergeTree(std::size_t size)
    : pairs_(make_filter(kPairBits)), borders_(make_filter(kBorderBits)), inner_borders_(make_filter(kInnerBits)) {
    std::size_t capacity = 512;
    while (capacity * 2 < size * 3) capacity *= 2;
    slots_.assign(capacity, {0, kNoToken});
    mask_ = capacity - 1;
    splits_.reserve(size);
}

inline std::uint64_t MergeTree::hash(TokenId left, TokenId right) {
    return fold_multiply((std::uint64_t{left} << 32 | right) ^ 0x9E3779B97F4A7C15u, 0xD6E8FEB86659FD93u);
}

void MergeTree::add(const Vocabulary& vocabulary, TokenId id, Split split) {
    splits_.push_back(split);
    const std::uint64_t h = hash(split.left, split.right);
    set_bit<kPairBits>(pairs_, h);
    const Symbol after = any_symbol_at(vocabulary.bytes(split.right), 0).symbol;
    const Symbol before = last_symbol(vocabulary.bytes(split.left));
    if (before < kByteSymbol && after < kByteSymbol) {
        set_bit<kBorderBits>(borders_, border_hash(before, after));
    } else {
        set_bit<kInnerBits>(inner_borders_, border_hash(before, after));
    }
    std::uint64_t at = h & mask_;
    while (slots_[at].id != kNoToken) at = (at + 1) & mask_;
    slots_[at] = {static_cast<std::uint32_t>(h >> 32), id};
}

inline TokenId MergeTree::merged(TokenId left, TokenId right) const {
    const std::uint64_t h = hash(left, right);
    if (!has_bit<kPairBits>(pairs_, h)) return kNoToken;
    for (std::uint64_t at = h & mask_; slots_[at].id != kNoToken; at = (at + 1) & mask_) {
        if (slots_[at].tag != static_cast<std::uint32_t>(h >> 32)) continue;
        const Split split = splits_[slots_[at].id - kFirstMerge];
        if (split.left == left && split.right == right) return slots_[at].id;
    }
    return kNoToken;
}

// A merge across the border ends on the left with the character there or with its last byte alone, and begins likewise.
bool MergeTree::may_merge_at(std::string_view text, std::size_t border) const {
    std::size_t start = border - 1;
    while (start > 0 && border - start < 4 && is_continuation(static_cast<unsigned char>(text[start]))) --start;
    const SymbolAt whole = symbol_at(text.substr(0, border), start);
    const Symbol last_byte = kByteSymbol | static_cast<unsigned char>(text[border - 1]);
    const Symbol before = whole.length == border - start ? whole.symbol : last_byte;
    const Symbol after = symbol_at(text, border).symbol;
    const Symbol first_byte = kByteSymbol | static_cast<unsigned char>(text[border]);
    const auto inner = [&](Symbol a, Symbol b) { return has_bit<kInnerBits>(inner_borders_, border_hash(a, b)); };
    return has_bit<kBorderBits>(borders_, border_hash(before, after)) || inner(last_byte, first_byte) ||
           inner(before, first_byte) || inner(last_byte, after);
}

// Goes back in time along the border: `left` and `right` are the parts that touch it, each made at its own rank and
// used up at its parent's. A merge across the border happens if both parts exist when its rank comes; among equal
// ranks the leftmost goes first.
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
