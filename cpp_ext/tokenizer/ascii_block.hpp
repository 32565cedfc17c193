// The classes of 64 bytes at once, one bit per byte: the split pattern becomes arithmetic on words of 64 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace qwenvl {

// Bit i stands for byte i. `beyond`: bytes that are not ASCII; they are in no other class. `blanks` are U+0020,
// `newlines` are CR and LF; both are in `spaces` too.
struct AsciiBlock {
    static constexpr std::size_t kSize = 64;

    std::uint64_t letters = 0, numbers = 0, spaces = 0, newlines = 0, blanks = 0, apostrophes = 0, beyond = 0;
};

namespace ascii {

// Sixteen bytes and their comparisons. All ranges are within ASCII, so comparing bytes as signed numbers is right.
#if defined(__SSE2__)
struct Bytes {
    static constexpr std::size_t kSize = 16;
    using Marks = __m128i;
    __m128i value;

    static Bytes load(const unsigned char* from) {
        return {_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))};
    }
    static std::uint64_t bits(Marks marks) { return static_cast<std::uint16_t>(_mm_movemask_epi8(marks)); }
    Bytes lower() const { return {_mm_or_si128(value, _mm_set1_epi8(0x20))}; }
    Marks equal(char to) const { return _mm_cmpeq_epi8(value, _mm_set1_epi8(to)); }
    Marks within(char first, char last) const {
        return _mm_and_si128(_mm_cmpgt_epi8(value, _mm_set1_epi8(static_cast<char>(first - 1))),
                             _mm_cmplt_epi8(value, _mm_set1_epi8(static_cast<char>(last + 1))));
    }
    Marks beyond() const { return value; }
};
#elif defined(__aarch64__)
struct Bytes {
    static constexpr std::size_t kSize = 16;
    using Marks = uint8x16_t;
    uint8x16_t value;

    static Bytes load(const unsigned char* from) { return {vld1q_u8(from)}; }
    static std::uint64_t bits(Marks marks) {
        const uint8x16_t places = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
        const uint8x16_t set = vandq_u8(marks, places);
        return vaddv_u8(vget_low_u8(set)) | std::uint64_t{vaddv_u8(vget_high_u8(set))} << 8;
    }
    Bytes lower() const { return {vorrq_u8(value, vdupq_n_u8(0x20))}; }
    Marks equal(char to) const { return vceqq_u8(value, vdupq_n_u8(static_cast<std::uint8_t>(to))); }
    Marks within(char first, char last) const {
        return vcleq_u8(vsubq_u8(value, vdupq_n_u8(static_cast<std::uint8_t>(first))),
                        vdupq_n_u8(static_cast<std::uint8_t>(last - first)));
    }
    Marks beyond() const { return vcgeq_u8(value, vdupq_n_u8(0x80)); }
};
#else
// Eight bytes in one word; a mark is the top bit of its byte.
struct Bytes {
    static constexpr std::size_t kSize = 8;
    using Marks = std::uint64_t;
    static constexpr std::uint64_t kEach = 0x0101010101010101u, kTop = 0x80 * kEach;
    std::uint64_t value;

    static Bytes load(const unsigned char* from) {
        Bytes bytes{0};
        for (std::size_t i = 0; i < kSize; ++i) bytes.value |= std::uint64_t{from[i]} << (8 * i);
        return bytes;
    }
    static std::uint64_t bits(Marks marks) { return ((marks & kTop) >> 7) * 0x0102040810204080u >> 56; }
    Bytes lower() const { return {value | 0x20 * kEach}; }
    Marks equal(char to) const { return within(to, to); }
    Marks within(char first, char last) const {
        const std::uint64_t low = value & ~kTop;
        const auto over = [&](int limit) { return low + static_cast<std::uint64_t>(0x80 - limit) * kEach; };
        return over(first) & ~over(last + 1) & ~value;
    }
    Marks beyond() const { return value; }
};
#endif

}  // namespace ascii

// The classes of the 64 bytes at `text`.
inline AsciiBlock classify_ascii(const unsigned char* text) {
    using ascii::Bytes;
    AsciiBlock block;
    for (std::size_t at = 0; at < AsciiBlock::kSize; at += Bytes::kSize) {
        const Bytes bytes = Bytes::load(text + at);
        const auto newlines = Bytes::bits(bytes.equal('\n')) | Bytes::bits(bytes.equal('\r'));
        const auto blanks = Bytes::bits(bytes.equal(' '));
        block.letters |= Bytes::bits(bytes.lower().within('a', 'z')) << at;
        block.numbers |= Bytes::bits(bytes.within('0', '9')) << at;
        block.spaces |= (Bytes::bits(bytes.within('\t', '\r')) | blanks) << at;
        block.newlines |= newlines << at;
        block.blanks |= blanks << at;
        block.apostrophes |= Bytes::bits(bytes.equal('\'')) << at;
        block.beyond |= Bytes::bits(bytes.beyond()) << at;
    }
    return block;
}

}  // namespace qwenvl
