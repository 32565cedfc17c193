// Special tokens by their text, and the search for the ones that a caller allows.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/vocabulary.hpp"

namespace qwenvl {

struct SpecialToken {
    std::string text;
    TokenId id;
};

// Finds the leftmost allowed token in a text; of several that start at one place the longest.
class SpecialMatcher {
public:
    SpecialMatcher() = default;
    explicit SpecialMatcher(std::vector<SpecialToken> tokens);

    // Position and token of the first match at or after `start`; {text.size(), nullptr} when there is none.
    std::pair<std::size_t, const SpecialToken*> find(std::string_view text, std::size_t start) const;

private:
    const SpecialToken* match(std::string_view text, std::size_t at) const;

    std::vector<SpecialToken> tokens_;  // by text
    std::array<bool, 256> starts_{};
    char only_start_ = 0;  // the first byte, if all tokens share it
    bool shared_start_ = false;
};

// All special tokens of a tokenizer. Throws std::invalid_argument for empty texts and clashing ids.
class SpecialTokens {
public:
    SpecialTokens(std::vector<SpecialToken> tokens, std::size_t vocabulary_size);

    const SpecialMatcher& all() const { return all_; }
    SpecialMatcher only(const std::vector<std::string>& texts) const;

    // nullptr when `id` is not special.
    const SpecialToken* find(TokenId id) const;

private:
    std::vector<SpecialToken> tokens_;  // by id
    SpecialMatcher all_;
};

}  // namespace qwenvl
