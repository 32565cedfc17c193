#include "tokenizer/vocabulary.hpp"

#include <array>
#include <cstring>
#include <mutex>
#include <stdexcept>

#include "tokenizer/hash.hpp"

namespace qwenvl {
namespace {

constexpr std::uint8_t kBad = 0xFF;

constexpr std::array<std::uint8_t, 256> make_base64_values() {
    std::array<std::uint8_t, 256> values{};
    for (auto& value : values) value = kBad;
    const char* alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (std::uint8_t i = 0; i < 64; ++i) values[static_cast<unsigned char>(alphabet[i])] = i;
    return values;
}

constexpr auto kBase64 = make_base64_values();

[[noreturn]] void fail(std::size_t line, const std::string& what) {
    throw std::invalid_argument("line " + std::to_string(line) + " of the vocabulary " + what +
                                "; get a whole copy of qwen.tiktoken");
}

// Appends what canonical base64 `text` stands for; false when it is not base64.
bool append_base64(std::string_view text, std::string& out) {
    if (text.empty() || text.size() % 4 != 0) return false;
    std::size_t padding = text[text.size() - 1] == '=' ? (text[text.size() - 2] == '=' ? 2 : 1) : 0;
    for (std::size_t i = 0; i < text.size(); i += 4) {
        const std::size_t pad = i + 4 == text.size() ? padding : 0;
        std::uint32_t word = 0;
        for (std::size_t j = 0; j < 4 - pad; ++j) {
            const std::uint8_t value = kBase64[static_cast<unsigned char>(text[i + j])];
            if (value == kBad) return false;
            word |= static_cast<std::uint32_t>(value) << (18 - 6 * j);
        }
        if (word & ((1u << (8 * pad)) - 1)) return false;
        for (std::size_t j = 0; j < 3 - pad; ++j) out.push_back(static_cast<char>(word >> (16 - 8 * j)));
    }
    return true;
}

bool parse_rank(std::string_view text, std::uint64_t& rank) {
    if (text.empty() || text.size() > 9) return false;
    rank = 0;
    for (char c : text) {
        if (c < '0' || c > '9') return false;
        rank = rank * 10 + static_cast<std::uint64_t>(c - '0');
    }
    return true;
}

}  // namespace

Vocabulary::Vocabulary(std::string_view file) {
    read(file);
    insert_all();
    find_single_bytes();
}

void Vocabulary::read(std::string_view file) {
    bytes_.reserve(file.size() / 2);
    offsets_.reserve(file.size() / 14 + 2);
    offsets_.push_back(0);
    for (std::size_t start = 0, line = 1; start < file.size(); ++line) {
        std::size_t end = file.find('\n', start);
        if (end == std::string_view::npos) end = file.size();
        std::string_view row = file.substr(start, end - start);
        start = end + 1;
        if (!row.empty() && row.back() == '\r') row.remove_suffix(1);
        const std::size_t space = row.find(' ');
        if (space == std::string_view::npos) fail(line, "is not \"base64 rank\"");
        std::uint64_t rank = 0;
        if (!parse_rank(row.substr(space + 1), rank)) fail(line, "has no rank");
        if (!append_base64(row.substr(0, space), bytes_)) fail(line, "has a token that is not base64");
        if (rank != size()) {
            fail(line, "has rank " + std::to_string(rank) + " where " + std::to_string(size()) + " should be");
        }
        longest_ = std::max<std::size_t>(longest_, bytes_.size() - offsets_.back());
        offsets_.push_back(static_cast<std::uint32_t>(bytes_.size()));
    }
    bytes_.append(kPadding, '\0');
    if (size() == 0) throw std::invalid_argument("the vocabulary is empty; get a whole copy of qwen.tiktoken");
}

void Vocabulary::insert_all() {
    words_.reserve(size());
    std::size_t long_tokens = 0;
    for (TokenId id = 0; id < size(); ++id) long_tokens += bytes(id).size() > ShortWord::kMost;
    std::size_t capacity = 16;
    while (capacity < long_tokens * 2) capacity *= 2;
    slots_.assign(capacity, {0, kNoToken});
    mask_ = capacity - 1;
    for (TokenId id = 0; id < size(); ++id) {
        const std::string_view token = bytes(id);
        const bool is_short = token.size() <= ShortWord::kMost;
        const TokenId there =
            is_short ? words_.insert(ShortWord::of(token.data(), token.size(), kPadding), id) : insert_long(id);
        if (there != kNoToken) fail(id + 1, "repeats the token of line " + std::to_string(there + 1));
    }
}

void Vocabulary::make_wide_words() const {
    const std::lock_guard<std::mutex> lock(wide_->mutex);
    if (wide_->made.load(std::memory_order_relaxed)) return;
    wide_->words.reserve(size());
    for (TokenId id = 0; id < size(); ++id) wide_->words.push_back(WideWord::of(bytes(id)));
    wide_->made.store(true, std::memory_order_release);
}

TokenId Vocabulary::insert_long(TokenId id) {
    const std::uint64_t hash = hash_bytes(bytes(id));
    const std::uint32_t tag = static_cast<std::uint32_t>(hash >> 32);
    std::size_t at = hash & mask_;
    for (; slots_[at].id != kNoToken; at = (at + 1) & mask_) {
        if (slots_[at].tag == tag && bytes(slots_[at].id) == bytes(id)) return slots_[at].id;
    }
    slots_[at] = {tag, id};
    return kNoToken;
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
    for (std::size_t at = hash & mask_; slots_[at].id != kNoToken; at = (at + 1) & mask_) {
        if (slots_[at].tag == tag && bytes(slots_[at].id) == key) return slots_[at].id;
    }
    return kNoToken;
}

}  // namespace qwenvl
