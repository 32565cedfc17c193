// Byte-pair merging of one piece as it is defined: lowest rank first, leftmost among equals. It serves every
// vocabulary.
#pragma once

#include <string_view>
#include <vector>

#include "tokenizer/linear_bpe.hpp"
#include "tokenizer/vocabulary.hpp"

namespace qwenvl {

// Appends the ids of `piece` (any bytes, not empty; `readable` bytes may be read from its beginning). O(n log n).
void merge_piece(const Vocabulary& vocabulary, std::string_view piece, std::size_t readable, std::vector<TokenId>& ids);

// The same for a short part (valid UTF-8, at most 64 bytes, of which `readable` may be read), beginning with whole
// characters instead of bytes. Returns false and leaves `ids` alone where merging would join parts of characters.
bool merge_characters(const Vocabulary& vocabulary, const LinearBpe& linear, std::string_view part,
                      std::size_t readable, std::vector<TokenId>& ids);

}  // namespace qwenvl
