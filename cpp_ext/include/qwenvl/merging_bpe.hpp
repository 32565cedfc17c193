// Byte-pair merging of one piece as it is defined: lowest rank first, leftmost among equals. Right for every
// vocabulary.
#pragma once

#include <string_view>
#include <vector>

#include "qwenvl/vocabulary.hpp"

namespace qwenvl {

// Appends the ids of `piece` (any bytes, not empty). O(n log n); working memory is kept per thread.
void merge_piece(const Vocabulary& vocabulary, std::string_view piece, std::vector<TokenId>& ids);

}  // namespace qwenvl
