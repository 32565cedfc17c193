// The tokens that are prefixes of other tokens.
#pragma once

#include <vector>

#include "tokenizer/vocabulary.hpp"

namespace qwenvl {

// By id: the longest token that is a proper prefix, or kNoToken. Tokens are looked up many at a time: memory that one
// look-up will read is fetched while others are hashed.
std::vector<TokenId> longest_prefixes(const Vocabulary& vocabulary);

}  // namespace qwenvl
