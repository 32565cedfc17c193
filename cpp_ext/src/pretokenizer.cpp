#include "qwenvl/pretokenizer.hpp"

#include <array>

#include "qwenvl/unicode.hpp"

namespace qwenvl {
namespace {

constexpr std::array<CharClass, 128> make_ascii_classes() {
    std::array<CharClass, 128> classes{};
    for (unsigned c = 0; c < 128; ++c) {
        const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'), digit = c >= '0' && c <= '9';
        const bool space = c == ' ' || (c >= '\t' && c <= '\r');
        classes[c] = letter ? kLetter : digit ? kNumber : space ? kSpace : kOther;
    }
    return classes;
}

// The beginning of kCharClasses, which the compiler can see.
constexpr auto kAsciiClasses = make_ascii_classes();

struct Scanner {
    const unsigned char* text;
    std::size_t size;

    struct Char {
        CharClass kind;
        std::uint32_t length;
    };

    Char at(std::size_t pos) const {
        if (text[pos] < 0x80) return {kAsciiClasses[text[pos]], 1};
        const CodePoint point = decode_utf8(text + pos);
        return {static_cast<CharClass>(kCharClasses[point.value]), point.length};
    }

    bool is(std::size_t pos, CharClass kind) const { return pos < size && at(pos).kind == kind; }

    std::size_t skip(std::size_t pos, CharClass kind) const {
        while (pos < size) {
            const Char c = at(pos);
            if (c.kind != kind) break;
            pos += c.length;
        }
        return pos;
    }

    static bool is_newline(unsigned char byte) { return byte == '\r' || byte == '\n'; }

    // Length of (?i:'s|'t|'re|'ve|'m|'ll|'d) at an apostrophe, or 0.
    std::size_t contraction(std::size_t pos) const {
        const auto lower = [&](std::size_t i) { return i < size ? text[i] | 0x20 : 0; };
        switch (lower(pos + 1)) {
            case 's':
            case 't':
            case 'm':
            case 'd':
                return 2;
            case 'r':
            case 'v':
                return lower(pos + 2) == 'e' ? 3 : 0;
            case 'l':
                return lower(pos + 2) == 'l' ? 3 : 0;
            default:
                break;
        }
        // U+017F, the long s, folds to "s".
        const bool long_s = pos + 2 < size && text[pos + 1] == 0xC5 && text[pos + 2] == 0xBF;
        return long_s ? 3 : 0;
    }

    // \s*[\r\n]+ | \s+(?!\S) | \s+ at a white space character.
    std::size_t white_space(std::size_t start) const {
        std::size_t pos = start, last_char = start, after_newline = start;
        while (pos < size) {
            const Char c = at(pos);
            if (c.kind != kSpace) break;
            last_char = pos;
            if (is_newline(text[pos])) after_newline = pos + 1;
            pos += c.length;
        }
        if (after_newline > start) return after_newline;
        if (pos == size || last_char == start) return pos;
        return last_char;
    }

    std::size_t symbols(std::size_t pos) const {
        pos = skip(pos, kOther);
        while (pos < size && is_newline(text[pos])) ++pos;
        return pos;
    }

    std::size_t piece_end(std::size_t start) const {
        const Char c = at(start);
        const std::size_t next = start + c.length;
        if (c.kind == kLetter) return skip(next, kLetter);
        if (c.kind == kNumber) return next;
        if (text[start] == '\'') {
            if (const std::size_t length = contraction(start)) return start + length;
        }
        if (!is_newline(text[start]) && is(next, kLetter)) return skip(next, kLetter);
        if (c.kind == kOther) return symbols(next);
        if (text[start] == ' ' && is(next, kOther)) return symbols(next);
        return white_space(start);
    }
};

}  // namespace

std::size_t next_piece_end(std::string_view text, std::size_t start) {
    return Scanner{reinterpret_cast<const unsigned char*>(text.data()), text.size()}.piece_end(start);
}

}  // namespace qwenvl
