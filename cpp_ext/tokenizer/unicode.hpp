// Unicode classes of the split pattern, and decoding of valid UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwenvl {

enum CharClass : std::uint8_t { kOther = 0, kLetter = 1, kNumber = 2, kSpace = 3 };

constexpr std::size_t kCodePoints = 0x110000;

// One byte per code point; unassigned ones are kOther.
extern const std::uint8_t* const kCharClasses;

struct CodePoint {
    std::uint32_t value;
    std::uint32_t length;  // bytes in UTF-8
};

// The first character of `text`, which must be valid UTF-8 and start at a character.
inline CodePoint decode_utf8(const unsigned char* text) {
    const std::uint32_t lead = text[0];
    if (lead < 0x80) return {lead, 1};
    if (lead < 0xE0) return {(lead & 0x1F) << 6 | (text[1] & 0x3Fu), 2};
    if (lead < 0xF0) return {(lead & 0x0F) << 12 | (text[1] & 0x3Fu) << 6 | (text[2] & 0x3Fu), 3};
    return {(lead & 0x07) << 18 | (text[1] & 0x3Fu) << 12 | (text[2] & 0x3Fu) << 6 | (text[3] & 0x3Fu), 4};
}

// Bytes of the character that begins with `lead`, if it begins one.
inline std::size_t utf8_length(unsigned char lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

inline bool is_continuation(unsigned char byte) { return (byte & 0xC0) == 0x80; }

}  // namespace qwenvl
