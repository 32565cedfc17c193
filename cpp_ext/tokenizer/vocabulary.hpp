// The ranks of a byte-level BPE: bytes of every token, and hash tables from bytes to rank.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/word_table.hpp"

namespace qwenvl {

class Vocabulary {
public:
    // `file`: the contents of a .tiktoken file, lines "base64 rank" with ranks 0, 1, 2, ...
    // Throws std::invalid_argument that names the line when the file is damaged.
    explicit Vocabulary(std::string_view file);

    std::size_t size() const { return size_; }
    std::size_t longest_token() const { return longest_; }

    // The token's bytes. kPadding bytes may be read from each of a short token's bytes, and from the first of a longer
    // one's.
    static constexpr std::size_t kPadding = 16;
    std::string_view bytes(TokenId id) const {
        const ShortWord& word = words_[id];
        return word.is_too_long() ? long_bytes(word.low) : std::string_view(word.data(), word.size());
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

private:
    // number: of a long token; kNoToken: empty.
    struct Slot {
        std::uint32_t tag;
        std::uint32_t number;
    };

    void read(std::string_view file);
    void append(std::string_view token);
    void index(TokenId id);
    void index_long();
    TokenId find_long(std::string_view bytes) const;
    void find_single_bytes();

    std::string_view long_bytes(std::size_t number) const {
        return {long_bytes_.data() + long_ends_[number], long_ends_[number + 1] - long_ends_[number]};
    }

    WordTable words_;
    // Tokens that are too long for words_, by the number that stands for them there.
    std::string long_bytes_;                 // all of them, joined
    std::vector<std::size_t> long_ends_{0};  // a 0, then the end of each in long_bytes_
    std::vector<TokenId> long_ids_;
    std::vector<Slot> slots_;  // hash table
    std::array<TokenId, 256> single_{};
    std::size_t size_ = 0, mask_ = 0, longest_ = 0;
};

}  // namespace qwenvl
