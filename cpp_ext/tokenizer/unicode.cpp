#include "tokenizer/unicode.hpp"

#include <cstring>

namespace qwenvl {
namespace {

struct CodePointRange {
    std::uint32_t first, last;
};

#include "tokenizer/unicode_ranges.inc"

template <std::size_t N>
void fill(std::uint8_t* table, const CodePointRange (&ranges)[N], CharClass value) {
    for (const CodePointRange& range : ranges) std::memset(table + range.first, value, range.last - range.first + 1);
}

// A flat table needs one load per character, and only the pages of scripts in use are touched.
const std::uint8_t* make_classes() {
    static std::uint8_t table[kCodePoints];
    fill(table, letter_ranges, kLetter);
    fill(table, number_ranges, kNumber);
    fill(table, space_ranges, kSpace);
    return table;
}

}  // namespace

const std::uint8_t* const kCharClasses = make_classes();

}  // namespace qwenvl
