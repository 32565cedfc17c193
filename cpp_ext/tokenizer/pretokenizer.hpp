// The published split pattern as a scanner that also cuts inside pieces, where this cannot change the ids:
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "tokenizer/border_filter.hpp"

namespace qwenvl {

// Gives the parts of a text that are encoded on their own. A part is a piece of the split pattern. In scripts without
// spaces pieces are whole clauses; there a part is the text between two borders that no merge crosses.
class Pretokenizer {
public:
    static constexpr std::size_t kMost = 192;
    using Ends = std::array<std::size_t, kMost>;

    // `text`: valid UTF-8.
    explicit Pretokenizer(std::string_view text) : text_(text) {}

    // The beginning of the next part. Every further part begins where the one before it ends.
    std::size_t position() const { return at_; }

    // Writes the ends of the next parts and returns their number, 0 at the end of the text. `borders`: null while the
    // vocabulary's merges are not known; pieces are then left whole.
    std::size_t next(Ends& ends, const BorderFilter* borders);

private:
    bool worth_cutting() const;
    std::size_t cut_piece(Ends& ends, std::size_t count, const BorderFilter& borders);

    std::string_view text_;
    std::size_t at_ = 0, piece_end_ = 0;
};

}  // namespace qwenvl
