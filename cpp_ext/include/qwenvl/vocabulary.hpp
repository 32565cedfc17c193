// The ranks of a byte-level BPE: bytes of every token, and hash tables from bytes to rank.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "qwenvl/word_table.hpp"

namespace qwenvl {

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

    // Of a token of up to 15 bytes, those and their number, in one place: decoding reads no other memory.
    struct Chunk {
        static constexpr std::uint8_t kTooLong = 0xFF;

        char bytes[15];
        std::uint8_t size;
    };
    // nullptr for longer tokens and for ids that are no rank.
    const Chunk* chunk(std::int64_t id) const {
        if (static_cast<std::uint64_t>(id) >= chunks_.size()) return nullptr;
        const Chunk* found = &chunks_[static_cast<std::size_t>(id)];
        return found->size != Chunk::kTooLong ? found : nullptr;
    }

    // Rank of the token with exactly these bytes, or kNoToken. `readable`: bytes that may be read from their beginning.
    TokenId find(std::string_view bytes) const { return find(bytes, bytes.size()); }
    TokenId find(std::string_view bytes, std::size_t readable) const {
        if (bytes.size() > WordTable::kLongest) return bytes.size() > longest_ ? kNoToken : find_long(bytes);
        return words_.find(WordTable::key_of(bytes.data(), bytes.size(), readable));
    }
    const WordTable& words() const { return words_; }

private:
    struct Slot {
        std::uint32_t tag;
        TokenId id;
    };

    void read(std::string_view file);
    void insert_all();
    void fill_chunks();
    TokenId insert_long(TokenId id);
    TokenId find_long(std::string_view bytes) const;
    void require_single_bytes() const;

    std::string bytes_;
    std::vector<std::uint32_t> offsets_;
    std::vector<Chunk> chunks_;
    WordTable words_;
    std::vector<Slot> slots_;  // tokens that are too long for words_
    std::size_t mask_ = 0;
    std::size_t longest_ = 0;
};

}  // namespace qwenvl
