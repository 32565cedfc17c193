// Which two tokens each token is merged from, and whether two neighbours can stay unmerged.
//
// In a vocabulary made by byte-pair training, encoding a token's own bytes ends in one last merge (left, right), and
// both have lower ranks. That makes "is this sequence of tokens the encoding of its bytes?" a question about each pair
// of neighbours alone, which is what makes encoding in linear time possible.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/vocabulary.hpp"

namespace qwenvl {

class MergeTree {
public:
    struct Split {
        TokenId left, right;
    };

    // Ids below 256 are single bytes and have no split.
    static constexpr TokenId kFirstMerge = 256;

    explicit MergeTree(std::size_t size);

    // Ids must be added in order, from kFirstMerge on.
    void add(TokenId id, Split split);

    // True when encoding the bytes of `left` and `right` together gives [left, right] under the merges added so far.
    bool stays_apart(TokenId left, TokenId right) const;

private:
    struct Slot {
        std::uint32_t tag;
        TokenId id;
    };

    static std::uint64_t hash(TokenId left, TokenId right);
    TokenId merged(TokenId left, TokenId right) const;

    std::vector<Split> splits_;  // from kFirstMerge on
    std::vector<Slot> slots_;
    std::vector<std::uint64_t> pairs_;  // one bit a hash: most pairs of tokens have no merge
    std::uint64_t mask_;
};

}  // namespace qwenvl
