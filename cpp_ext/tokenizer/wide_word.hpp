// Up to seven characters of two bytes as a value of 16: what decoding copies where text is not ASCII.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "tokenizer/utf8_text.hpp"

namespace qwenvl {

struct WideWord {
    static constexpr std::size_t kMost = 7;

    std::array<char16_t, kMost> units;
    std::uint16_t size;  // kNone: the bytes are too many, a part of a character, or not UTF-8

    static constexpr std::uint16_t kNone = 0xFFFF;

    // Of a token's bytes, with kReadable that may be read. Characters above U+FFFF have no such form.
    static constexpr std::size_t kReadable = 8;
    static WideWord of(std::string_view bytes) {
        WideWord word{{}, kNone};
        const auto* text = reinterpret_cast<const unsigned char*>(bytes.data());
        if (is_ascii({bytes.data(), std::min(bytes.size(), kReadable)})) {
            if (bytes.size() > kMost) return word;
            for (std::size_t i = 0; i < kMost; ++i) word.units[i] = text[i];
            word.size = static_cast<std::uint16_t>(bytes.size());
            return word;
        }
        std::uint16_t size = 0;
        for (std::size_t left = bytes.size(); left > 0; ++size) {
            const Utf8Sequence next = *text < 0x80 ? Utf8Sequence{*text, 1} : utf8_sequence(text, left);
            if (next.length == 0 || next.value > 0xFFFF || size == kMost) return word;
            word.units[size] = static_cast<char16_t>(next.value);
            text += next.length;
            left -= next.length;
        }
        word.size = size;
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
