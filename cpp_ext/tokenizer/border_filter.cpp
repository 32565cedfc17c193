#include "tokenizer/border_filter.hpp"

#include "tokenizer/symbols.hpp"

namespace qwenvl {
namespace {

Symbol last_byte_of(std::uint32_t point) { return kByteSymbol | (point < 0x80 ? point : 0x80 | (point & 0x3F)); }

Symbol first_byte_of(std::uint32_t point) {
    if (point < 0x80) return kByteSymbol | point;
    if (point < 0x800) return kByteSymbol | 0xC0 | point >> 6;
    return kByteSymbol | (point < 0x10000 ? 0xE0 | point >> 12 : 0xF0 | point >> 18);
}

}  // namespace

BorderFilter::BorderFilter() : pairs_(std::size_t{1} << (kHashBits - 6)), joins_(kClamp + 1) {}

void BorderFilter::add(std::string_view left, std::string_view right) {
    const Symbol before = last_symbol(left), after = any_symbol_at(right, 0).symbol;
    const auto first_byte = static_cast<unsigned char>(right[0]), last_byte = static_cast<unsigned char>(left.back());
    if (is_continuation(first_byte)) return;  // inside a character
    const std::uint64_t at = hash(before, after);
    pairs_[at / 64] |= std::uint64_t{1} << (at % 64);
    if (before < kByteSymbol && after >= kByteSymbol) joins_[clamp(before)] |= kPartAfter;
    if (before >= kByteSymbol && after < kByteSymbol) joins_[clamp(after)] |= kPartBefore;
    if (before >= kByteSymbol && after >= kByteSymbol) mark_ends_with(last_byte);
}

void BorderFilter::mark_ends_with(unsigned char last_byte) {
    for (std::uint32_t point = 0; point <= kClamp; ++point) {
        if (last_byte_of(point) == (kByteSymbol | last_byte)) joins_[point] |= kPartAfter;
    }
    joins_[kClamp] |= kPartAfter;
}

bool BorderFilter::find_part(std::uint32_t before, std::uint32_t after) const {
    const Symbol last_byte = last_byte_of(before), first_byte = first_byte_of(after);
    return bit(pairs_, hash(before, first_byte)) | bit(pairs_, hash(last_byte, after)) |
           bit(pairs_, hash(last_byte, first_byte));
}

}  // namespace qwenvl
