// UTF-8 to code points of 1, 2 or 4 bytes, checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace qwenvl {

// What well-formed UTF-8 with these bytes holds; of other bytes it says nothing.
struct Utf8Summary {
    unsigned char largest_byte;
    std::size_t characters;
};

inline Utf8Summary summarize_utf8(std::string_view bytes) {
    Utf8Summary summary{0, 0};
    for (const char byte : bytes) {
        const auto value = static_cast<unsigned char>(byte);
        summary.largest_byte = value > summary.largest_byte ? value : summary.largest_byte;
        summary.characters += static_cast<signed char>(byte) >= -0x40;  // no continuation byte
    }
    return summary;
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

// Writes the code points, each of which must fit, to `out`, which has room for all. False where the bytes are no UTF-8.
template <typename Unit>
bool transcode_utf8(std::string_view bytes, Unit* out) {
    const auto* text = reinterpret_cast<const unsigned char*>(bytes.data());
    const auto* const end = text + bytes.size();
    while (text < end) {
        if (*text < 0x80) {
            std::uint64_t eight = ~std::uint64_t{0};
            if (end - text >= 8) std::memcpy(&eight, text, 8);
            const int count = eight & 0x8080808080808080u ? 1 : 8;
            for (int i = 0; i < count; ++i) *out++ = *text++;
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
