// Text to ids and back: special tokens, split pattern, byte-pair merging. Safe to share between threads.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/deferred_linear_bpe.hpp"
#include "tokenizer/special_tokens.hpp"
#include "tokenizer/vocabulary.hpp"
#include "tokenizer/workspace.hpp"

namespace qwenvl {

class Tokenizer {
public:
    // `linear_after`: bytes, see DeferredLinearBpe. The ids do not depend on it.
    Tokenizer(std::string_view vocabulary_file, std::vector<SpecialToken> special_tokens,
              std::size_t linear_after = DeferredLinearBpe::kWorthBytes);

    const Vocabulary& vocabulary() const { return vocabulary_; }
    const SpecialTokens& special_tokens() const { return special_tokens_; }

    // Appends the ids of `text`: valid UTF-8, already normalised. Tokens of `allowed` become their ids; everything else
    // is plain text.
    void encode(std::string_view text, const SpecialMatcher& allowed, std::vector<TokenId>& ids) const;

    std::size_t count(std::string_view text, const SpecialMatcher& allowed) const;

    // Bytes of one token. Throws std::invalid_argument for an id without a token.
    std::string_view token_bytes(std::int64_t id) const;

    // Bytes of all ids, one after another. Throws as token_bytes.
    std::string decode(const std::vector<std::int64_t>& ids) const;

private:
    void split_part(std::string_view part, std::size_t readable, Workspace& workspace, std::vector<TokenId>& ids) const;
    void encode_long(std::string_view part, std::size_t readable, Workspace& workspace,
                     std::vector<TokenId>& ids) const;
    void encode_parts(std::string_view text, std::size_t start, const std::size_t* ends, std::size_t count,
                      Workspace& workspace, std::vector<TokenId>& ids) const;

    // Appends the ids of the text, some at a time, and calls use() each time.
    template <typename Use>
    void encode_and(std::string_view text, const SpecialMatcher& allowed, std::vector<TokenId>& ids, Use use) const;

    Vocabulary vocabulary_;
    SpecialTokens special_tokens_;
    mutable DeferredLinearBpe linear_;
    mutable WorkspacePool workspaces_;
};

}  // namespace qwenvl
