// A quick test for text that is in Unicode's normal form C already, as most text is.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwenvl {

// True only when normalisation changes nothing: all characters are in ranges (Latin, kana, ideographs and their
// punctuation) in which no character combines with others or is replaced.
inline bool surely_normal(const std::uint16_t* text, std::size_t size) {
    // All values have sixteen bits, so that compilers make vectors of the loops.
    std::uint16_t doubtful = 0;
    const auto within = [](std::uint16_t unit, std::uint16_t first, std::uint16_t last) {
        return std::uint16_t{static_cast<std::uint16_t>(unit - first) <= static_cast<std::uint16_t>(last - first)};
    };
    constexpr std::size_t block = 64;
    for (std::size_t start = 0; start < size; start += block) {
        const std::size_t end = start + block < size ? start + block : size;
        std::uint16_t any = 0;
        for (std::size_t i = start; i < end; ++i) any = static_cast<std::uint16_t>(any | text[i]);
        if (any < 0x200) continue;  // Latin letters only
        for (std::size_t i = start; i < end; ++i) {
            const std::uint16_t c = text[i];
            const int known = within(c, 0, 0x2FF) | within(c, 0x2010, 0x2027) | within(c, 0x3001, 0x3029) |
                              within(c, 0x3041, 0x3096) | within(c, 0x30A1, 0x30FA) | within(c, 0x4E00, 0x9FFF) |
                              within(c, 0xFF01, 0xFFBE);
            doubtful = static_cast<std::uint16_t>(doubtful | (known ^ 1));
        }
    }
    return doubtful == 0;
}

}  // namespace qwenvl
