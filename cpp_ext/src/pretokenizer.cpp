#include "qwenvl/pretokenizer.hpp"

#include <array>
#include <cstdint>
#include <cstring>

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

// The top bit of each byte that is an ASCII letter.
std::uint64_t letters_of(std::uint64_t bytes) {
    constexpr std::uint64_t each = 0x0101010101010101u;
    const std::uint64_t lower = (bytes | each * 0x20) & each * 0x7F;
    return (lower + each * (0x80 - 'a')) & ~(lower + each * (0x7F - 'z')) & ~bytes & each * 0x80;
}

// Of eight bytes as they lie in memory, the first one whose top bit is set in `marks`, not 0.
std::size_t first_marked(std::uint64_t marks) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return static_cast<std::size_t>(__builtin_clzll(marks)) / 8;
#else
    return static_cast<std::size_t>(__builtin_ctzll(marks)) / 8;
#endif
}

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
            if ((text[pos] & 0xF0) == 0xE0) {  // the most frequent case, and the longest runs
                const std::uint32_t high = (text[pos] & 0x0Fu) << 12, middle = (text[pos + 1] & 0x3Fu) << 6;
                if (kCharClasses[high | middle | (text[pos + 2] & 0x3Fu)] != kind) break;
                pos += 3;
                continue;
            }
            const Char c = at(pos);
            if (c.kind != kind) break;
            pos += c.length;
        }
        return pos;
    }

    // Words end after a few bytes, which ones no branch predictor knows: eight at a time need one guess.
    std::size_t skip_letters(std::size_t pos) const {
        while (pos + 8 <= size) {
            std::uint64_t bytes;
            std::memcpy(&bytes, text + pos, 8);
            const std::uint64_t others = letters_of(bytes) ^ 0x8080808080808080u;
            if (others == 0) {
                pos += 8;
                continue;
            }
            pos += first_marked(others);
            if (text[pos] < 0x80) return pos;
            break;
        }
        return skip(pos, kLetter);
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
        if (c.kind == kLetter) return skip_letters(next);
        if (c.kind == kNumber) return next;
        if (text[start] == '\'') {
            if (const std::size_t length = contraction(start)) return start + length;
        }
        if (!is_newline(text[start]) && is(next, kLetter)) return skip_letters(next);
        if (c.kind == kOther) return symbols(next);
        if (text[start] == ' ' && is(next, kOther)) return symbols(next);
        return white_space(start);
    }
};

}  // namespace

std::size_t Pretokenizer::next(Ends& ends) {
    const Scanner scanner{reinterpret_cast<const unsigned char*>(text_.data()), text_.size()};
    std::size_t count = 0;
    while (count + 1 < kMost && at_ < text_.size()) {
        if (at_ == piece_end_) piece_end_ = scanner.piece_end(at_);
        if (worth_cutting()) {
            count = cut_piece(ends, count);
        } else {
            at_ = ends[count++] = piece_end_;
        }
    }
    return count;
}

// The scripts without spaces have characters of three bytes. A space or a quotation mark may stand in front of them.
inline bool Pretokenizer::worth_cutting() const {
    constexpr unsigned char three_bytes = 0xE0;
    const std::size_t second = at_ + 1 < piece_end_ ? at_ + 1 : at_;
    const auto lead = static_cast<unsigned char>(text_[at_]), next = static_cast<unsigned char>(text_[second]);
    return (lead >= three_bytes || next >= three_bytes) && borders_ != nullptr;
}

std::size_t Pretokenizer::cut_piece(Ends& ends, std::size_t count) {
    const auto* text = reinterpret_cast<const unsigned char*>(text_.data());
    CodePoint before = decode_utf8(text + at_);
    std::size_t pos = at_ + before.length;
    while (pos < piece_end_ && count + 1 < kMost) {
        const CodePoint after = decode_utf8(text + pos);
        ends[count] = pos;  // without a branch, which would be guessed wrong at every third border
        count += !borders_->may_merge(before.value, after.value);
        pos += after.length;
        before = after;
    }
    if (pos >= piece_end_) ends[count++] = piece_end_;
    at_ = ends[count - 1];
    return count;
}

}  // namespace qwenvl
