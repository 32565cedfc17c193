// Up to seven characters of two bytes as a value of 16: what decoding copies where text is not ASCII.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "qwenvl/utf8_text.hpp"

namespace qwenvl {

struct WideWord {
    static constexpr std::size_t kMost = 7;

    std::array<char16_t, kMost> units;
    std::uint16_t size;  // kNone: the bytes are too many, a part of a character, or not UTF-8

    static constexpr std::uint16_t kNone = 0xFFFF;

    // Of a token's bytes. Characters above U+FFFF have no such form.
    static WideWord of(std::string_view bytes) {
        WideWord word{{}, kNone};
        if (bytes.size() > 3 * kMost) return word;
        const Utf8Summary summary = summarize_utf8(bytes);
        if (summary.characters > kMost || summary.largest_byte >= kFourBytes) return word;
        if (transcode_utf8(bytes, word.units.data(), word.units.data() + summary.characters)) {
            word.size = static_cast<std::uint16_t>(summary.characters);
        }
        return word;
    }

    // Writes kMost + 1 units, of which `size` are the word.
    template <typename Unit>
    void copy_to(Unit* out) const {
        if constexpr (sizeof(Unit) == sizeof(char16_t)) {
            std::memcpy(out, this, sizeof *this);
        } else {
            for (std::size_t i = 0; i < kMost; ++i) out[i] = units[i];
        }
    }

    bool exists() const { return size <= kMost; }
};

}  // namespace qwenvl
