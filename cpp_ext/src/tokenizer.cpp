#include "qwenvl/tokenizer.hpp"

#include <atomic>
#include <cstring>
#include <stdexcept>

#include "qwenvl/merging_bpe.hpp"
#include "qwenvl/pretokenizer.hpp"
#include "qwenvl/unicode.hpp"

namespace qwenvl {
namespace {

std::atomic<std::uint64_t> serials{0};

}  // namespace
template <typename Use>
void Tokenizer::for_each_piece(std::string_view text, const SpecialMatcher& allowed, Use use) const {
    std::vector<TokenId> ids;
    PieceCache& cache = PieceCache::of_thread(serial_);
    for (std::size_t start = 0; start < text.size();) {
        const auto [plain_end, special] = allowed.find(text, start);
        const std::string_view plain = text.substr(start, plain_end - start);
        for (std::size_t at = 0; at < plain.size();) {
            const std::size_t end = next_piece_end(plain, at);
            ids.clear();
            encode_piece(plain, at, end, cache, ids);
            if (!use(ids)) return;
            at = end;
        }
        if (special == nullptr) return;
        ids.assign(1, special->id);
        if (!use(ids)) return;
        start = plain_end + special->text.size();
    }
}

Tokenizer::Tokenizer(std::string_view vocabulary_file, std::vector<SpecialToken> special_tokens)
    : vocabulary_(vocabulary_file),
      linear_(LinearBpe::make(vocabulary_)),
      serial_(++serials),
      special_tokens_(std::move(special_tokens), vocabulary_.size()) {}

void Tokenizer::split_piece(std::string_view piece, std::vector<TokenId>& ids) const {
    if (linear_) {
        linear_->encode(piece, ids);
    } else {
        merge_piece(vocabulary_, piece, ids);
    }
}

inline void Tokenizer::encode_piece(std::string_view text, std::size_t start, std::size_t end, PieceCache& cache,
                                    std::vector<TokenId>& ids) const {
    const std::string_view piece = text.substr(start, end - start);
    if (piece.size() > WordTable::kLongest) {
        const bool look_up = !linear_ && piece.size() <= vocabulary_.longest_token();  // linear_ finds it by itself
        const TokenId whole = look_up ? vocabulary_.find(piece) : kNoToken;
        if (whole == kNoToken) return split_piece(piece, ids);
        ids.push_back(whole);
        return;
    }
    const WordTable::Key key = WordTable::key_of(piece.data(), piece.size(), text.size() - start);
    if (const TokenId whole = vocabulary_.words().find(key); whole != kNoToken) {
        ids.push_back(whole);
        return;
    }
    PieceCache::Entry& entry = cache.entry(key);
    if (PieceCache::holds(entry, key)) {
        ids.insert(ids.end(), entry.ids.begin(), entry.ids.begin() + entry.count);
        return;
    }
    const std::size_t before = ids.size();
    split_piece(piece, ids);
    PieceCache::store(entry, key, ids.data() + before, ids.size() - before);
}

void Tokenizer::encode(std::string_view text, const SpecialMatcher& allowed, std::vector<TokenId>& ids) const {
    PieceCache& cache = PieceCache::of_thread(serial_);
    for (std::size_t start = 0; start < text.size();) {
        const auto [plain_end, special] = allowed.find(text, start);
        const std::string_view plain = text.substr(start, plain_end - start);
        for (std::size_t at = 0; at < plain.size();) {
            const std::size_t end = next_piece_end(plain, at);
            encode_piece(plain, at, end, cache, ids);
            at = end;
        }
        if (special == nullptr) break;
        ids.push_back(special->id);
        start = plain_end + special->text.size();
    }
}

std::size_t Tokenizer::count(std::string_view text, const SpecialMatcher& allowed) const {
    std::size_t total = 0;
    for_each_piece(text, allowed, [&](const std::vector<TokenId>& ids) {
        total += ids.size();
        return true;
    });
    return total;
}

std::size_t Tokenizer::truncate(std::string_view text, const SpecialMatcher& allowed, std::size_t limit) const {
    std::vector<std::size_t> ends{0};  // byte where each of the first `limit` tokens ends
    bool whole = true;
    for_each_piece(text, allowed, [&](const std::vector<TokenId>& ids) {
        for (TokenId id : ids) {
            whole = ends.size() <= limit;
            if (!whole) return false;
            ends.push_back(ends.back() + token_bytes(id).size());
        }
        return true;
    });
    if (whole) return text.size();
    // A shorter text can split differently at its end, so the count of what is left is checked.
    while (ends.size() > 1) {
        const std::size_t end = ends.back();
        const bool at_character = end == text.size() || !is_continuation(static_cast<unsigned char>(text[end]));
        if (at_character && count(text.substr(0, end), allowed) <= limit) return end;
        ends.pop_back();
    }
    return 0;
}

std::string_view Tokenizer::special_bytes(std::int64_t id) const {
    const SpecialToken* special = id >= 0 && id < kNoToken ? special_tokens_.find(static_cast<TokenId>(id)) : nullptr;
    if (special == nullptr) {
        throw std::invalid_argument("token id " + std::to_string(id) + " has no text; ids below " +
                                    std::to_string(vocabulary_.size()) + " and special tokens can be decoded");
    }
    return special->text;
}

std::string Tokenizer::decode(const std::vector<std::int64_t>& ids) const {
    std::size_t size = 0;
    for (std::int64_t id : ids) size += token_bytes(id).size();
    std::string bytes(size + Vocabulary::kPadding, '\0');
    char* out = bytes.data();
    for (std::int64_t id : ids) {
        const std::string_view token = token_bytes(id);
        // Most tokens are short: a copy of fixed size, whose end the next one overwrites.
        const bool fixed = token.size() <= Vocabulary::kPadding && static_cast<std::size_t>(id) < vocabulary_.size();
        if (fixed) {
            std::memcpy(out, token.data(), Vocabulary::kPadding);
        } else {
            std::memcpy(out, token.data(), token.size());
        }
        out += token.size();
    }
    bytes.resize(size);
    return bytes;
}

}  // namespace qwenvl
