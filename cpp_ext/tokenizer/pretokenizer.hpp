// The published split pattern as a scanner, which cuts further where that is known to change nothing:
//   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "tokenizer/border_filter.hpp"

namespace qwenvl {

// Gives the parts of a text that are encoded on their own. A part is a piece of the split pattern, or in scripts
// without spaces, where pieces are whole clauses, what lies in a piece between two borders that no merge crosses.
class Pretokenizer {
public:
    static constexpr std::size_t kMost = 192;
    using Ends = std::array<std::size_t, kMost>;

    // `text`: valid UTF-8.
    explicit Pretokenizer(std::string_view text) : text_(text) {}

    // Where the next parts begin, each of them where the one before it ends.
    std::size_t position() const { return at_; }

    // Writes where the next parts end and returns their number, 0 at the end of the text. Linear in what it passes.
    // `borders`: null while the vocabulary's merges are not known; pieces are then left whole.
    std::size_t next(Ends& ends, const BorderFilter* borders);

private:
    bool worth_cutting() const;
    std::size_t cut_piece(Ends& ends, std::size_t count, const BorderFilter& borders);

    std::string_view text_;
    std::size_t at_ = 0, piece_end_ = 0;
};

}  // namespace qwenvl
