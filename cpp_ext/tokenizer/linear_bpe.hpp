// Byte-pair encoding in linear time, for vocabularies that byte-pair training made.
//
// Instead of merging, it goes from left to right: it takes the longest token that may follow the last one, and steps
// back where none may. Only one sequence of tokens has no two neighbours that would merge, and merging gives the same
// (the method of van Antwerpen and Neubeck, "So many tokens, so little time", GitHub 2024).
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "tokenizer/border_filter.hpp"
#include "tokenizer/merge_tree.hpp"
#include "tokenizer/prefix_trie.hpp"
#include "tokenizer/vocabulary.hpp"

namespace qwenvl {

class LinearBpe {
public:
    // nullptr when the vocabulary has tokens that no merge of two lower ranks makes, or very long ones; its text has to
    // be merged then.
    static std::unique_ptr<LinearBpe> make(const Vocabulary& vocabulary);

    // Working memory of `encode`: the places where a token may end. One is closed when no token can follow there.
    class OpenPlaces;

    // Appends the ids of `piece` (any bytes, not empty). Returns how many tokens it tried: at most a fixed number for
    // each byte.
    std::size_t encode(std::string_view piece, OpenPlaces& open, std::vector<TokenId>& ids) const;

    const BorderFilter& borders() const { return borders_; }

    // The token that is this code point alone, or kNoToken.
    TokenId character(std::uint32_t point) const { return trie_->character(point); }

private:
    explicit LinearBpe(const Vocabulary& vocabulary);

    // False when the vocabulary does not fit.
    bool add_merges();
    bool make_trie();

    const Vocabulary& vocabulary_;
    std::vector<TokenId> shorter_;  // by id: the longest token that is a proper prefix, or kNoToken
    std::unique_ptr<PrefixTrie> trie_;
    MergeTree merges_;
    BorderFilter borders_;
};

class LinearBpe::OpenPlaces {
public:
    void reset(std::size_t size) {
        if (size < 64) {
            small_ = ~std::uint64_t{0};
            words_ = &small_;
            return;
        }
        many_.assign(size / 64 + 1, ~std::uint64_t{0});
        words_ = many_.data();
    }

    bool at(std::size_t place) const { return words_[place / 64] >> (place % 64) & 1; }
    void close(std::size_t place) { words_[place / 64] &= ~(std::uint64_t{1} << (place % 64)); }

private:
    std::uint64_t small_ = 0;
    std::vector<std::uint64_t> many_;
    std::uint64_t* words_ = nullptr;
};

}  // namespace qwenvl
