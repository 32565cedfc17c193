// Text to ids and back: special tokens, split pattern, byte-pair merging. Immutable, safe to share between threads.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "qwenvl/linear_bpe.hpp"
#include "qwenvl/piece_cache.hpp"
#include "qwenvl/special_tokens.hpp"
#include "qwenvl/vocabulary.hpp"

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

    std::string decode(const std::vector<std::int64_t>& ids) const;

private:
    std::string_view special_bytes(std::int64_t id) const;
    void split_piece(std::string_view piece, std::vector<TokenId>& ids) const;
    void encode_piece(std::string_view text, std::size_t start, std::size_t end, PieceCache& cache,
                      std::vector<TokenId>& ids) const;

    // Calls use(ids) after each piece or special token until it returns false; the ids are the new ones only.
    template <typename Use>
    void for_each_piece(std::string_view text, const SpecialMatcher& allowed, Use use) const;

    Vocabulary vocabulary_;
    std::unique_ptr<LinearBpe> linear_;  // null: the vocabulary needs merging
    std::uint64_t serial_;               // never used twice, unlike an address
    SpecialTokens special_tokens_;
};

}  // namespace qwenvl
