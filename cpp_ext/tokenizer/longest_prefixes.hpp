// Which tokens are the beginnings of others.
#pragma once

#include <vector>

#include "tokenizer/vocabulary.hpp"

namespace qwenvl {

// By id: the longest token that is a proper prefix, or kNoToken. Many at a time, so that what their look-ups will read
// is fetched while others are hashed.
std::vector<TokenId> longest_prefixes(const Vocabulary& vocabulary);

}  // namespace qwenvl
