// Byte-pair merging of one piece, lowest rank first, leftmost among equals.
#pragma once

#include <string_view>
#include <vector>

#include "qwenvl/vocabulary.hpp"

namespace qwenvl {

// Appends the ids of `piece` (any bytes, not empty). O(n log n); working memory is kept per thread.
void encode_piece(const Vocabulary& vocabulary, std::string_view piece, std::vector<TokenId>& ids);

}  // namespace qwenvl
