// The published split pattern as a scanner:
//   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
#pragma once

#include <cstddef>
#include <string_view>

namespace qwenvl {

// End of the piece that starts at byte `start` < text.size(). `text` is valid UTF-8; linear in the piece.
std::size_t next_piece_end(std::string_view text, std::size_t start);

}  // namespace qwenvl
