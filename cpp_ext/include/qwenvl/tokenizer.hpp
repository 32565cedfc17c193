// Text to ids and back: special tokens, split pattern, byte-pair merging. Immutable, safe to share between threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "qwenvl/byte_buffer.hpp"
#include "qwenvl/linear_bpe.hpp"
#include "qwenvl/pretokenizer.hpp"
#include "qwenvl/special_tokens.hpp"
#include "qwenvl/vocabulary.hpp"
#include "qwenvl/workspace.hpp"

namespace qwenvl {

class Tokenizer {
public:
    Tokenizer(std::string_view vocabulary_file, std::vector<SpecialToken> special_tokens);

    const Vocabulary& vocabulary() const { return vocabulary_; }
    const SpecialTokens& special_tokens() const { return special_tokens_; }

    // `text`: valid UTF-8, already normalised. Tokens of `allowed` become their ids, all else is plain text.
    void encode(std::string_view text, const SpecialMatcher& allowed, std::vector<TokenId>& ids) const;

    std::size_t count(std::string_view text, const SpecialMatcher& allowed) const;

    // Bytes of the longest prefix of `text` that ends at a character and has at most `limit` tokens.
    std::size_t truncate(std::string_view text, const SpecialMatcher& allowed, std::size_t limit) const;

    // Bytes of one token. Throws std::invalid_argument for an id without a token.
    std::string_view token_bytes(std::int64_t id) const {
        const bool ordinary = static_cast<std::uint64_t>(id) < vocabulary_.size();
        return ordinary ? vocabulary_.bytes(static_cast<TokenId>(id)) : special_bytes(id);
    }

    // Appends the bytes of id_at(0) .. id_at(count - 1); stops at a negative one and returns how many were appended.
    template <typename IdAt>
    std::size_t append_bytes(std::size_t count, IdAt id_at, ByteBuffer& out) const {
        constexpr std::size_t many = 64;  // ids between two looks at the room that is left
        std::size_t i = 0;
        while (i < count) {
            const std::size_t stop = std::min(count, i + many);
            char* end = out.reserve(many * sizeof(Vocabulary::Chunk));
            std::int64_t id = 0;
            for (; i < stop; ++i) {
                id = id_at(i);
                const Vocabulary::Chunk* chunk = vocabulary_.chunk(id);
                if (chunk == nullptr) break;
                std::memcpy(end, chunk, sizeof *chunk);  // of fixed size; the next one overwrites its end
                end += chunk->size;
            }
            out.extend_to(end);
            if (i == stop) continue;
            if (id < 0) break;
            out.append(token_bytes(id));
            ++i;
        }
        return i;
    }

    std::string decode(const std::vector<std::int64_t>& ids) const;

private:
    std::string_view special_bytes(std::int64_t id) const;
    void split_part(std::string_view part, std::size_t readable, Workspace& workspace, std::vector<TokenId>& ids) const;
    void encode_part(std::string_view part, std::size_t readable, Workspace& workspace,
                     std::vector<TokenId>& ids) const;

    // Appends the ids of the text, some at a time, and calls use() after each time until it returns false.
    template <typename Use>
    void encode_while(std::string_view text, const SpecialMatcher& allowed, std::vector<TokenId>& ids, Use use) const;

    Vocabulary vocabulary_;
    std::unique_ptr<LinearBpe> linear_;  // null: the vocabulary needs merging
    SpecialTokens special_tokens_;
    mutable WorkspacePool workspaces_;
};

}  // namespace qwenvl
