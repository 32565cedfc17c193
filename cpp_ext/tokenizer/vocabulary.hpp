// The ranks of a byte-level BPE: bytes of every token, and hash tables from bytes to rank.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/wide_word.hpp"
#include "tokenizer/word_table.hpp"

namespace qwenvl {

// What decoding will read for an id of any value: a number for an address, since that of no token is outside the table.
inline void prefetch(std::uintptr_t table, std::int64_t id) {
    static_assert(sizeof(ShortWord) == sizeof(WideWord));
    __builtin_prefetch(reinterpret_cast<const void*>(table + static_cast<std::uintptr_t>(id) * sizeof(WideWord)));
}

class Vocabulary {
public:
    // `file`: the contents of a .tiktoken file, lines "base64 rank" with ranks 0, 1, 2, ...
    // Throws std::invalid_argument that names the line when the file is damaged.
    explicit Vocabulary(std::string_view file);

    std::size_t size() const { return offsets_.size() - 1; }
    std::size_t longest_token() const { return longest_; }

    // kPadding bytes may be read from the beginning of every token.
    static constexpr std::size_t kPadding = 16;
    std::string_view bytes(TokenId id) const {
        return {bytes_.data() + offsets_[id], static_cast<std::size_t>(offsets_[id + 1] - offsets_[id])};
    }

    // Rank of a single byte.
    TokenId byte(char value) const { return single_[static_cast<unsigned char>(value)]; }

    // Rank of the token with exactly these bytes, or kNoToken. `readable`: bytes that may be read from their beginning.
    TokenId find(std::string_view bytes) const { return find(bytes, bytes.size()); }
    TokenId find(std::string_view bytes, std::size_t readable) const {
        if (bytes.size() > ShortWord::kMost) return bytes.size() > longest_ ? kNoToken : find_long(bytes);
        return words_.find(ShortWord::of(bytes.data(), bytes.size(), readable));
    }
    const WordTable& words() const { return words_; }

    // By id; made when they are first asked for, since much text is ASCII.
    const std::vector<WideWord>& wide_words() const {
        if (!wide_->made.load(std::memory_order_acquire)) make_wide_words();
        return wide_->words;
    }

    // Where the words or the wide words lie, for prefetch.
    std::uintptr_t table(bool wide) const {
        const void* const first = wide ? static_cast<const void*>(wide_words().data()) : &words_[0];
        return reinterpret_cast<std::uintptr_t>(first);
    }

private:
    struct WideWords {
        std::atomic<bool> made = false;
        std::mutex mutex;
        std::vector<WideWord> words;
    };
    struct Slot {
        std::uint32_t tag;
        TokenId id;
    };

    void read(std::string_view file);
    void insert_all();
    void make_wide_words() const;
    TokenId insert_long(TokenId id);
    TokenId find_long(std::string_view bytes) const;
    void find_single_bytes();

    std::string bytes_;
    std::vector<std::uint32_t> offsets_;
    WordTable words_;
    std::unique_ptr<WideWords> wide_ = std::make_unique<WideWords>();
    std::array<TokenId, 256> single_{};
    std::vector<Slot> slots_;  // tokens that are too long for words_
    std::size_t mask_ = 0;
    std::size_t longest_ = 0;
};

}  // namespace qwenvl
