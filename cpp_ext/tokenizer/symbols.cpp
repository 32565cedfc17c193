#include "tokenizer/symbols.hpp"

namespace qwenvl {

SymbolAt any_symbol_at(std::string_view bytes, std::size_t at) {
    const auto lead = static_cast<unsigned char>(bytes[at]);
    const std::size_t length = utf8_length(lead);
    if (lead < 0x80) return {lead, 1};
    if (lead < 0xC2 || lead > 0xF4 || length > bytes.size() - at) return byte_symbol(lead);
    for (std::size_t i = 1; i < length; ++i) {
        if (!is_continuation(static_cast<unsigned char>(bytes[at + i]))) return byte_symbol(lead);
    }
    const CodePoint point = decode_utf8(reinterpret_cast<const unsigned char*>(bytes.data()) + at);
    constexpr std::uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    const bool surrogate = point.value >= 0xD800 && point.value < 0xE000;
    if (point.value < smallest[length] || point.value >= kCodePoints || surrogate) return byte_symbol(lead);
    return {point.value, point.length};
}

Symbol last_symbol(std::string_view bytes) {
    for (std::size_t length = 1; length <= 4 && length <= bytes.size(); ++length) {
        const SymbolAt found = any_symbol_at(bytes, bytes.size() - length);
        if (found.length == length && found.symbol < kByteSymbol) return found.symbol;
    }
    return kByteSymbol | static_cast<unsigned char>(bytes.back());
}

}  // namespace qwenvl
