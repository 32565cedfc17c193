#include "tokenizer/pretokenizer.hpp"

#include <array>
#include <cstdint>
#include <cstring>

#include "tokenizer/ascii_block.hpp"
#include "tokenizer/unicode.hpp"

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

// The first entries of kCharClasses, as constants for the compiler.
constexpr auto kAsciiClasses = make_ascii_classes();

// True when the first eight bytes are ASCII.
bool starts_ascii(const unsigned char* text) {
    std::uint64_t bytes;
    std::memcpy(&bytes, text, sizeof bytes);
    return (bytes & 0x8080808080808080u) == 0;
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

constexpr std::uint64_t kFirst = 1;

std::size_t lowest(std::uint64_t bits) { return static_cast<std::size_t>(__builtin_ctzll(bits)); }
std::size_t highest(std::uint64_t bits) { return 63 - static_cast<std::size_t>(__builtin_clzll(bits)); }

// Within runs of white space, the places after a run's last newline. `gaps` is white space without newlines. The carry
// of the addition runs through each stretch of it that begins after a newline.
std::uint64_t after_last_newlines(std::uint64_t gaps, std::uint64_t newlines) {
    std::uint64_t places = gaps & newlines << 1;
    for (std::uint64_t more = (gaps + places) & ~gaps & newlines; more != 0; more &= more - 1) {
        const std::uint64_t below = (more & (~more + 1)) - 1;
        places &= ~(kFirst << highest(places & below));  // this stretch ends at another newline
    }
    return places;
}

// The beginnings of pieces in the first `size` bytes of a block. These bytes are ASCII and begin with a piece; more
// text may follow. So the last piece may end later than the block, and white space at its end may hold further
// beginnings.
std::uint64_t piece_starts(const AsciiBlock& block, std::size_t size, const Scanner& scanner, std::size_t at) {
    const std::uint64_t valid = ~std::uint64_t{0} >> (AsciiBlock::kSize - size);
    const std::uint64_t letters = block.letters & valid, numbers = block.numbers & valid;
    const std::uint64_t others = valid & ~(letters | numbers | block.spaces);
    // Newlines that follow symbols belong to them. The carry of the addition runs through exactly those.
    const std::uint64_t newlines = block.newlines & (block.newlines + (others << 1 & block.newlines)) & valid;
    const std::uint64_t gaps = block.spaces & ~block.newlines & valid, spaces = gaps | newlines;

    const std::uint64_t symbols = others & ~((others | block.blanks) << 1);
    const std::uint64_t words = letters & ~((letters | gaps | symbols) << 1);
    const std::uint64_t last_visible = highest((valid & ~spaces) | kFirst);
    const std::uint64_t open = ~((std::uint64_t{2} << last_visible) - 1);
    const std::uint64_t cuts = after_last_newlines(gaps, newlines) | (gaps & ~(block.spaces >> 1));
    std::uint64_t starts = kFirst | numbers | symbols | words | (spaces & ~(spaces << 1)) | (cuts & ~open);
    for (std::uint64_t quotes = symbols & block.apostrophes; quotes != 0; quotes &= quotes - 1) {
        const std::size_t quote = lowest(quotes), length = scanner.contraction(at + quote);
        if (length != 0 && quote + length < size) starts |= kFirst << (quote + length);
    }
    return starts;
}

struct AsciiPieces {
    std::size_t count;
    bool more;  // the next bytes likely hold some too
};

// Writes the ends of the pieces that up to 64 ASCII bytes at `at` decide; they are fewer than 64.
AsciiPieces ascii_pieces(const Scanner& scanner, std::size_t at, std::size_t* ends) {
    const unsigned char* text = scanner.text + at;
    const std::size_t left = scanner.size - at;
    unsigned char last[AsciiBlock::kSize];
    if (left < AsciiBlock::kSize) {
        std::memset(last, 0x80, sizeof last);
        std::memcpy(last, text, left);
        text = last;
    }
    if (!starts_ascii(text)) return {0, false};
    const AsciiBlock block = classify_ascii(text);
    const std::size_t size = block.beyond == 0 ? AsciiBlock::kSize : lowest(block.beyond);
    std::size_t count = 0;
    for (std::uint64_t starts = piece_starts(block, size, scanner, at) & ~kFirst; starts != 0; starts &= starts - 1) {
        ends[count++] = at + lowest(starts);
    }
    return {count, size == AsciiBlock::kSize && count != 0};
}

}  // namespace

std::size_t Pretokenizer::next(Ends& ends, const BorderFilter* borders) {
    const Scanner scanner{reinterpret_cast<const unsigned char*>(text_.data()), text_.size()};
    std::size_t count = 0;
    while (count + AsciiBlock::kSize < kMost && at_ < text_.size()) {
        if (at_ == piece_end_) {
            const auto [pieces, more] = ascii_pieces(scanner, at_, ends.data() + count);
            if (pieces != 0) at_ = piece_end_ = ends[(count += pieces) - 1];
            if (more) continue;
            piece_end_ = scanner.piece_end(at_);
        }
        if (borders != nullptr && worth_cutting()) {
            count = cut_piece(ends, count, *borders);
        } else {
            at_ = ends[count++] = piece_end_;
        }
    }
    return count;
}

// Characters of scripts without spaces have three bytes. A space or a quotation mark may come before them.
inline bool Pretokenizer::worth_cutting() const {
    constexpr unsigned char three_bytes = 0xE0;
    const std::size_t second = at_ + 1 < piece_end_ ? at_ + 1 : at_;
    const auto lead = static_cast<unsigned char>(text_[at_]), next = static_cast<unsigned char>(text_[second]);
    return lead >= three_bytes || next >= three_bytes;
}

std::size_t Pretokenizer::cut_piece(Ends& ends, std::size_t count, const BorderFilter& borders) {
    const auto* text = reinterpret_cast<const unsigned char*>(text_.data());
    CodePoint before = decode_utf8(text + at_);
    std::size_t pos = at_ + before.length;
    while (pos < piece_end_ && count + 1 < kMost) {
        const CodePoint after = decode_utf8(text + pos);
        ends[count] = pos;  // without a branch: one in three would be predicted wrong
        count += !borders.may_merge(before.value, after.value);
        pos += after.length;
        before = after;
    }
    if (pos >= piece_end_) ends[count++] = piece_end_;
    at_ = ends[count - 1];
    return count;
}

}  // namespace qwenvl
