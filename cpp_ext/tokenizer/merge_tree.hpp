// The two tokens that each token is merged from, and a test for neighbours that stay unmerged.
//
// In a vocabulary made by byte-pair training, encoding a token's own bytes ends in one last merge of two tokens with
// lower ranks. A sequence of tokens is therefore the encoding of its bytes exactly when every pair of neighbours stays
// apart, and this is why encoding in linear time is possible.
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

    // Ids must be added in ascending order, from kFirstMerge on.
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
    std::vector<std::uint64_t> pairs_;  // one bit per hash: most pairs of tokens have no merge
    std::uint64_t mask_;
};

}  // namespace qwenvl
