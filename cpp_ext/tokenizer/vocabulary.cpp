#include "tokenizer/vocabulary.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "tokenizer/hash.hpp"

namespace qwenvl {
namespace {

[[noreturn]] void fail(std::size_t line, const std::string& what) {
    throw std::invalid_argument("line " + std::to_string(line) + " of the vocabulary " + what +
                                "; get a whole copy of qwen.tiktoken");
}

[[noreturn]] void fail_repeated(TokenId id, TokenId there) {
    fail(id + 1, "repeats the token of line " + std::to_string(there + 1));
}

constexpr std::uint32_t kBad = 1u << 31;

// By place in a group of four characters and by character: the bits that it adds to the group's three bytes, the first
// of which is the number's lowest byte. kBad: not a character of base64.
using Base64Table = std::array<std::array<std::uint32_t, 256>, 4>;

constexpr Base64Table make_base64_table() {
    Base64Table table{};
    for (auto& place : table) {
        for (auto& value : place) value = kBad;
    }
    const char* alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (std::uint32_t i = 0; i < 64; ++i) {
        const auto c = static_cast<unsigned char>(alphabet[i]);
        table[0][c] = i << 2;
        table[1][c] = i >> 4 | (i & 0xF) << 12;
        table[2][c] = (i >> 2) << 8 | (i & 0x3) << 22;
        table[3][c] = i << 16;
    }
    return table;
}

constexpr Base64Table kBase64 = make_base64_table();

std::uint32_t decode_group(const char* text) {
    std::uint32_t bytes = 0;
    for (std::size_t i = 0; i < 4; ++i) bytes |= kBase64[i][static_cast<unsigned char>(text[i])];
    return bytes;
}

// Writes the three bytes and a fourth without meaning.
void put_group(char* out, std::uint32_t bytes) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    bytes = __builtin_bswap32(bytes);
#endif
    std::memcpy(out, &bytes, sizeof bytes);
}

// Decodes the canonical base64 at `text` to `out`, where up to three bytes more are written. Moves both to their ends;
// returns false where there is no base64.
bool read_base64(const char*& text, const char* end, char*& out) {
    const char* const first = text;
    for (; end - text >= 4; text += 4, out += 3) {
        const std::uint32_t bytes = decode_group(text);
        if (bytes & kBad) break;
        put_group(out, bytes);
    }
    if (end - text >= 4 && text[3] == '=') {
        const int count = text[2] == '=' ? 1 : 2;
        const char group[] = {text[0], text[1], count == 1 ? 'A' : text[2], 'A'};
        const std::uint32_t bytes = decode_group(group);
        if (bytes >> (8 * count) != 0) return false;  // also for kBad
        put_group(out, bytes);
        out += count;
        text += 4;
    }
    return text != first;
}

struct Row {
    const char* next;  // the next line; null: this one is damaged
    std::size_t size;  // of the token
    std::uint64_t rank;
};

// Reads the line at `at` and writes its token's bytes to `token`.
Row read_row(const char* at, const char* end, char* token) {
    constexpr int kMostDigits = 9;
    constexpr Row damaged{nullptr, 0, 0};
    char* out = token;
    if (!read_base64(at, end, out) || at == end || *at++ != ' ') return damaged;
    std::uint64_t rank = 0;
    const char* const digits = at;
    for (; at < end && *at >= '0' && *at <= '9'; ++at) {
        if (at - digits == kMostDigits) return damaged;
        rank = rank * 10 + static_cast<std::uint64_t>(*at - '0');
    }
    if (at == digits) return damaged;
    if (at < end && *at == '\r') ++at;
    if (at < end && *at++ != '\n') return damaged;
    return {at, static_cast<std::size_t>(out - token), rank};
}

bool is_rank(std::string_view text) {
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    return !text.empty() && text.size() <= 9 && std::all_of(text.begin(), text.end(), is_digit);
}

// Throws the error of the damaged line that `rest` begins with.
[[noreturn]] void fail_at(std::size_t line, std::string_view rest) {
    std::string_view row = rest.substr(0, rest.find('\n'));
    if (!row.empty() && row.back() == '\r') row.remove_suffix(1);
    const std::size_t space = row.find(' ');
    if (space == std::string_view::npos) fail(line, "is not \"base64 rank\"");
    if (!is_rank(row.substr(space + 1))) fail(line, "has no rank");
    fail(line, "has a token that is not base64");
}

}  // namespace

Vocabulary::Vocabulary(std::string_view file) {
    read(file);
    index_long();
    find_single_bytes();
}

// `token`: kPadding bytes may be read.
inline void Vocabulary::append(std::string_view token) {
    longest_ = std::max(longest_, token.size());
    if (token.size() <= ShortWord::kMost) {
        words_.append(ShortWord::of(token.data(), token.size(), kPadding));
    } else {
        words_.append_hidden(ShortWord::too_long(long_ids_.size()));
        long_ids_.push_back(static_cast<TokenId>(size_));
        long_bytes_ += token;
        long_ends_.push_back(long_bytes_.size());
    }
    ++size_;
}

inline void Vocabulary::index(TokenId id) {
    if (words_[id].is_too_long()) return;
    const TokenId there = words_.index(id);
    if (there != kNoToken) fail_repeated(id, there);
}

void Vocabulary::read(std::string_view file) {
    constexpr std::size_t kShortestLine = 7;  // "YQ== 0" and its end
    constexpr std::size_t kAhead = 16;        // words by which the fetching of hash table slots is ahead of their use
    const auto lines = static_cast<std::size_t>(std::count(file.begin(), file.end(), '\n')) + 1;
    words_.reserve(std::min(lines, file.size() / kShortestLine + 1));
    const std::unique_ptr<char[]> token(new char[file.size() + kPadding]);  // most of it is never touched
    std::memset(token.get(), 0, kPadding);
    const char* at = file.data();
    const char* const end = at + file.size();
    for (std::size_t line = 1; at < end; ++line) {
        const Row row = read_row(at, end, token.get());
        if (row.next == nullptr) fail_at(line, std::string_view(at, static_cast<std::size_t>(end - at)));
        if (row.rank != size_) {
            fail(line, "has rank " + std::to_string(row.rank) + " where " + std::to_string(size_) + " should be");
        }
        append({token.get(), row.size});
        if (size_ > kAhead) index(static_cast<TokenId>(size_ - kAhead - 1));
        at = row.next;
    }
    for (std::size_t id = size_ - std::min(size_, kAhead); id < size_; ++id) index(static_cast<TokenId>(id));
    words_.append_hidden({});  // so that words before it can be read with padding
    if (size_ == 0) throw std::invalid_argument("the vocabulary is empty; get a whole copy of qwen.tiktoken");
}

void Vocabulary::index_long() {
    std::size_t capacity = 16;
    while (capacity < long_ids_.size() * 2) capacity *= 2;
    slots_.assign(capacity, {0, kNoToken});
    mask_ = capacity - 1;
    for (std::uint32_t number = 0; number < long_ids_.size(); ++number) {
        const std::string_view token = long_bytes(number);
        const std::uint64_t hash = hash_bytes(token);
        const std::uint32_t tag = static_cast<std::uint32_t>(hash >> 32);
        std::size_t at = hash & mask_;
        for (; slots_[at].number != kNoToken; at = (at + 1) & mask_) {
            const Slot& other = slots_[at];
            if (other.tag == tag && long_bytes(other.number) == token) {
                fail_repeated(long_ids_[number], long_ids_[other.number]);
            }
        }
        slots_[at] = {tag, number};
    }
}

void Vocabulary::find_single_bytes() {
    for (std::size_t value = 0; value < single_.size(); ++value) {
        const char byte = static_cast<char>(value);
        single_[value] = find({&byte, 1});
        if (single_[value] == kNoToken) {
            throw std::invalid_argument("the vocabulary has no token for the single byte " + std::to_string(value) +
                                        "; get a whole copy of qwen.tiktoken");
        }
    }
}

TokenId Vocabulary::find_long(std::string_view key) const {
    const std::uint64_t hash = hash_bytes(key);
    const std::uint32_t tag = static_cast<std::uint32_t>(hash >> 32);
    for (std::size_t at = hash & mask_; slots_[at].number != kNoToken; at = (at + 1) & mask_) {
        const Slot& slot = slots_[at];
        if (slot.tag == tag && long_bytes(slot.number) == key) return long_ids_[slot.number];
    }
    return kNoToken;
}

}  // namespace qwenvl
