// Text to ids and back: special tokens, split pattern, byte-pair merging. Immutable, safe to share between threads.
#pragma once

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

    // Appends what token_bytes gives.
    void append_bytes(std::int64_t id, ByteBuffer& out) const {
        if (static_cast<std::uint64_t>(id) < vocabulary_.size()) {
            const Vocabulary::Chunk& chunk = vocabulary_.chunk(static_cast<TokenId>(id));
            if (chunk.size != Vocabulary::Chunk::kTooLong) return out.append_chunk(&chunk, chunk.size);
        }
        out.append(token_bytes(id));
    }

    std::string decode(const std::vector<TokenId>& ids) const;

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
