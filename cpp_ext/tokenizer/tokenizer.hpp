// Text to ids and back: special tokens, split pattern, byte-pair merging. Immutable, safe to share between threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/linear_bpe.hpp"
#include "tokenizer/pretokenizer.hpp"
#include "tokenizer/special_tokens.hpp"
#include "tokenizer/unit_buffer.hpp"
#include "tokenizer/vocabulary.hpp"
#include "tokenizer/workspace.hpp"

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
        return is_rank(id) ? vocabulary_.bytes(static_cast<TokenId>(id)) : special_bytes(id);
    }

    // Appends the bytes of id_at(0) .. id_at(count - 1); stops at a negative one and returns how many were appended.
    // `out`: a ByteBuffer or what acts like one.
    template <typename IdAt, typename Buffer>
    std::size_t append_bytes(std::size_t count, IdAt id_at, Buffer& out) const {
        constexpr std::size_t many = 64;
        std::int64_t ids[many];
        const std::uintptr_t table = vocabulary_.table(false);
        for (std::size_t done = 0; done < count; done += many) {
            const std::size_t size = std::min(count - done, many);
            for (std::size_t i = 0; i < size; ++i) {
                ids[i] = id_at(done + i);
                prefetch(table, ids[i]);
            }
            const std::size_t appended = append_tokens(ids, size, out);
            if (appended != size) return done + appended;
        }
        return count;
    }

    // The same for ids that are there already.
    template <typename Buffer>
    std::size_t append_tokens(const std::int64_t* ids, std::size_t count, Buffer& out) const {
        const ShortWord* const words = &vocabulary_.words()[0];  // the stores might change what is no local variable
        const std::size_t ranks = vocabulary_.size();
        std::size_t i = 0;
        while (i < count) {
            char* end = out.reserve((count - i) * sizeof(ShortWord));
            for (; i < count && static_cast<std::uint64_t>(ids[i]) < ranks; ++i) {
                const ShortWord word = words[ids[i]];
                if (word.is_too_long()) break;
                std::memcpy(end, &word, sizeof word);  // of fixed size; the next one overwrites its end
                end += word.size();
            }
            out.extend_to(end);
            if (i == count || ids[i] < 0) break;
            out.append(token_bytes(ids[i]));
            ++i;
        }
        return i;
    }

    // A token's characters; null where they have no such form.
    const WideWord* wide_word(std::int64_t id) const {
        if (!is_rank(id)) return nullptr;
        const WideWord& word = vocabulary_.wide_words()[static_cast<TokenId>(id)];
        return word.exists() ? &word : nullptr;
    }

    std::string decode(const std::vector<std::int64_t>& ids) const;

private:
    bool is_rank(std::int64_t id) const { return static_cast<std::uint64_t>(id) < vocabulary_.size(); }

    std::string_view special_bytes(std::int64_t id) const;
    void split_part(std::string_view part, std::size_t readable, Workspace& workspace, std::vector<TokenId>& ids) const;
    void encode_long(std::string_view part, std::size_t readable, Workspace& workspace,
                     std::vector<TokenId>& ids) const;
    void encode_parts(std::string_view text, std::size_t start, const std::size_t* ends, std::size_t count,
                      Workspace& workspace, std::vector<TokenId>& ids) const;

    // Appends the ids of the text, some at a time, and calls use() after each time until it returns false.
    template <typename Use>
    void encode_while(std::string_view text, const SpecialMatcher& allowed, std::vector<TokenId>& ids, Use use) const;

    Vocabulary vocabulary_;
    std::unique_ptr<LinearBpe> linear_;  // null: the vocabulary needs merging
    SpecialTokens special_tokens_;
    mutable WorkspacePool workspaces_;
};

}  // namespace qwenvl
