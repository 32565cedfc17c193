// UTF-8 to code points of 1, 2 or 4 bytes, checked.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "tokenizer/unicode.hpp"

namespace qwenvl {

constexpr unsigned char kFourBytes = 0xF0;  // from here on, the first byte of a character above U+FFFF

// What well-formed UTF-8 with these bytes holds; of other bytes it says nothing.
struct Utf8Summary {
    unsigned char largest_byte;
    std::size_t characters;
};

inline Utf8Summary summarize_utf8(std::string_view bytes) {
    constexpr std::size_t block = 128;  // short enough for sums of one byte, which make wide vectors
    Utf8Summary summary{0, 0};
    while (!bytes.empty()) {
        std::uint8_t largest = 0, characters = 0;
        for (const char byte : bytes.substr(0, block)) {
            const auto value = static_cast<std::uint8_t>(byte);
            largest = value > largest ? value : largest;
            characters = static_cast<std::uint8_t>(characters + (static_cast<signed char>(byte) >= -0x40 ? 1 : 0));
        }
        summary.largest_byte = std::max(summary.largest_byte, largest);
        summary.characters += characters;  // bytes that continue none
        bytes.remove_prefix(std::min(block, bytes.size()));
    }
    return summary;
}

inline bool is_ascii(std::string_view bytes) {
    std::uint64_t any = 0, word;
    for (; bytes.size() >= sizeof word; bytes.remove_prefix(sizeof word)) {
        std::memcpy(&word, bytes.data(), sizeof word);
        any |= word;
    }
    for (const char byte : bytes) any |= static_cast<unsigned char>(byte);
    return (any & 0x8080808080808080u) == 0;
}

// The bytes before a character that the end of well-formed UTF-8 cuts off, or all.
inline std::size_t whole_characters(std::string_view bytes) {
    for (std::size_t left = 1; left <= 3 && left <= bytes.size(); ++left) {
        const auto byte = static_cast<unsigned char>(bytes[bytes.size() - left]);
        if (is_continuation(byte)) continue;
        return utf8_length(byte) > left ? bytes.size() - left : bytes.size();
    }
    return bytes.size();
}

// One well-formed sequence of `lead` >= 0x80 at `text`, of which `left` bytes may be read; 0 bytes when there is none.
struct Utf8Sequence {
    std::uint32_t value, length;
};

inline Utf8Sequence utf8_sequence(const unsigned char* text, std::size_t left) {
    const std::uint32_t lead = text[0];
    const auto payload = [&](std::size_t i) { return std::uint32_t{text[i]} ^ 0x80u; };  // below 0x40 when well-formed
    if ((lead & 0xF0) == 0xE0 && left >= 3) {
        const std::uint32_t value = (lead & 0x0F) << 12 | payload(1) << 6 | payload(2);
        const bool good = ((payload(1) | payload(2)) < 0x40) & (value >= 0x800) & ((value & 0xF800) != 0xD800);
        return {value, good ? 3u : 0u};
    }
    if (lead >= 0xC2 && lead < 0xE0 && left >= 2) return {(lead & 0x1F) << 6 | payload(1), payload(1) < 0x40 ? 2u : 0u};
    if (lead >= 0xF0 && lead < 0xF5 && left >= 4) {
        const std::uint32_t value = (lead & 0x07) << 18 | payload(1) << 12 | payload(2) << 6 | payload(3);
        const bool good = ((payload(1) | payload(2) | payload(3)) < 0x40) & (value >= 0x10000) & (value < 0x110000);
        return {value, good ? 4u : 0u};
    }
    return {0, 0};
}

// The first `many` bytes as units, which is what they are where it returns true: all ASCII.
template <std::size_t many, typename Unit>
bool widen_ascii(const unsigned char* __restrict text, Unit* __restrict out) {
    std::uint8_t any = 0;
    for (std::size_t i = 0; i < many; ++i) {
        any = static_cast<std::uint8_t>(any | text[i]);
        out[i] = text[i];
    }
    return any < 0x80;
}

// The same for sequences of three bytes, the usual ones of scripts without spaces: two in a word of eight bytes, without
// a branch for each. Reads two bytes more.
template <std::size_t pairs, typename Unit>
bool widen_threes(const unsigned char* __restrict text, Unit* __restrict out) {
    constexpr std::uint64_t marks = 0xC0C0F0C0C0F0, well_formed = 0x8080E08080E0;
    constexpr std::uint32_t too_long = 1u << 0, surrogates = 1u << (0xD800 >> 11);
    std::uint64_t bad = 0;
    std::uint32_t highs = 0;
    for (std::size_t i = 0; i < pairs; ++i, text += 6, out += 2) {
        std::uint64_t word;
        std::memcpy(&word, text, sizeof word);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
#endif
        bad |= (word & marks) ^ well_formed;
        for (std::size_t j = 0; j < 2; ++j, word >>= 24) {
            const std::uint64_t point = (word & 0x0F) << 12 | (word >> 2 & 0xFC0) | (word >> 16 & 0x3F);
            const auto value = static_cast<std::uint32_t>(point);
            highs |= 1u << (value >> 11);
            out[j] = static_cast<Unit>(value);
        }
    }
    return bad == 0 && (highs & (too_long | surrogates)) == 0;
}

// Writes the code points, each of which must fit, to `out`, up to `out_end`, which leaves room for all. False where the
// bytes are no UTF-8.
template <typename Unit>
bool transcode_utf8(std::string_view bytes, Unit* out, const Unit* out_end) {
    const auto* text = reinterpret_cast<const unsigned char*>(bytes.data());
    const auto* const end = text + bytes.size();
    const auto room = [&](std::size_t size, std::size_t units) {
        return static_cast<std::size_t>(end - text) >= size && static_cast<std::size_t>(out_end - out) >= units;
    };
    while (text < end) {
        constexpr std::size_t many = 32, pairs = 2;
        if (*text < 0x80) {
            if (room(many, many) && widen_ascii<many>(text, out)) {
                text += many;
                out += many;
                continue;
            }
            while (text < end && *text < 0x80) *out++ = *text++;
            continue;
        }
        if ((*text & 0xF0) == 0xE0 && room(6 * pairs + 2, 2 * pairs) && widen_threes<pairs>(text, out)) {
            text += 6 * pairs;
            out += 2 * pairs;
            continue;
        }
        const Utf8Sequence next = utf8_sequence(text, static_cast<std::size_t>(end - text));
        if (next.length == 0) return false;
        *out++ = static_cast<Unit>(next.value);
        text += next.length;
    }
    return true;
}

}  // namespace qwenvl
