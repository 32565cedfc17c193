// The ranks of a byte-level BPE: bytes of every token, and a hash table from bytes to rank.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qwenvl {

using TokenId = std::uint32_t;
constexpr TokenId kNoToken = 0xFFFFFFFFu;

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

    // Rank of the token with exactly these bytes, or kNoToken.
    TokenId find(std::string_view bytes) const;

private:
    struct Slot {
        std::uint32_t tag;
        TokenId id;
    };

    void read(std::string_view file);
    void insert_all();
    void require_single_bytes() const;

    std::string bytes_;
    std::vector<std::uint32_t> offsets_;
    std::vector<Slot> slots_;
    std::size_t mask_ = 0;
    std::size_t longest_ = 0;
};

}  // namespace qwenvl
