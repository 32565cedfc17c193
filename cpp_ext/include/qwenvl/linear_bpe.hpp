// Byte-pair encoding in linear time, for vocabularies that byte-pair training made.
//
// Instead of merging upwards it goes from left to right: take the longest token that may follow the last one, and step
// back where none may. The result is the one sequence in which all neighbours stay apart, which is what merging gives
// (the idea is that of van Antwerpen and Neubeck, "So many tokens, so little time", GitHub 2024).
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "qwenvl/merge_tree.hpp"
#include "qwenvl/prefix_trie.hpp"
#include "qwenvl/vocabulary.hpp"

namespace qwenvl {

class LinearBpe {
public:
    // nullptr when the vocabulary has tokens that no merge of two lower ranks makes; merging has to serve it then.
    static std::unique_ptr<LinearBpe> make(const Vocabulary& vocabulary);

    // Appends the ids of `piece` (any bytes, not empty).
    void encode(std::string_view piece, std::vector<TokenId>& ids) const;

private:
    explicit LinearBpe(const Vocabulary& vocabulary);

    bool add_merges();

    const Vocabulary& vocabulary_;
    PrefixTrie trie_;
    MergeTree merges_;
};

}  // namespace qwenvl
