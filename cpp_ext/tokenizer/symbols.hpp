// Bytes as symbols: the code point of a whole character, or else a single byte, in a range of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tokenizer/unicode.hpp"

namespace qwenvl {

using Symbol = std::uint32_t;
constexpr Symbol kByteSymbol = 0x110000;  // kByteSymbol | byte: a byte that is not a whole character

struct SymbolAt {
    Symbol symbol;
    std::uint32_t length;
};

inline SymbolAt byte_symbol(unsigned char byte) { return {kByteSymbol | byte, 1}; }

// The symbol at `at` < text.size(). `text` is valid UTF-8, possibly cut inside a character at both ends.
inline SymbolAt symbol_at(std::string_view text, std::size_t at) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data()) + at;
    if (bytes[0] < 0x80) return {bytes[0], 1};
    if (is_continuation(bytes[0]) || utf8_length(bytes[0]) > text.size() - at) return byte_symbol(bytes[0]);
    const CodePoint point = decode_utf8(bytes);
    return {point.value, point.length};
}

// The same for any bytes at all.
SymbolAt any_symbol_at(std::string_view bytes, std::size_t at);

// The last symbol of any bytes (not empty).
Symbol last_symbol(std::string_view bytes);

}  // namespace qwenvl
