#include "tokenizer/tokenizer.hpp"

#include <array>
#include <stdexcept>

#include "tokenizer/merging_bpe.hpp"
#include "tokenizer/unicode.hpp"

namespace qwenvl {
namespace {

// Up to here the few characters of a part are merged faster than the general way looks for the longest tokens.
constexpr std::size_t kFewBytes = 64;

}  // namespace

Tokenizer::Tokenizer(std::string_view vocabulary_file, std::vector<SpecialToken> special_tokens)
    : vocabulary_(vocabulary_file),
      linear_(LinearBpe::make(vocabulary_)),
      special_tokens_(std::move(special_tokens), vocabulary_.size()) {}

template <typename Use>
void Tokenizer::encode_while(std::string_view text, const SpecialMatcher& allowed, std::vector<TokenId>& ids,
                             Use use) const {
    const WorkspacePool::Lease workspace(workspaces_);
    Pretokenizer::Ends ends;
    for (std::size_t start = 0; start < text.size();) {
        const auto [plain_end, special] = allowed.find(text, start);
        const std::string_view plain = text.substr(start, plain_end - start);
        Pretokenizer pretokenizer(plain, linear_ ? &linear_->borders() : nullptr);
        for (std::size_t at = 0; at < plain.size(); at = pretokenizer.position()) {
            const std::size_t count = pretokenizer.next(ends);
            encode_parts(plain, at, ends.data(), count, *workspace, ids);
            if (!use()) return;
        }
        if (special == nullptr) return;
        ids.push_back(special->id);
        if (!use()) return;
        start = plain_end + special->text.size();
    }
}

void Tokenizer::split_part(std::string_view part, std::size_t readable, Workspace& workspace,
                           std::vector<TokenId>& ids) const {
    if (linear_ && part.size() <= kFewBytes && static_cast<unsigned char>(part[0]) >= 0xE0) {
        if (merge_characters(vocabulary_, *linear_, part, readable, ids)) return;
    }
    if (linear_ && part.size() > ShortWord::kMost) {
        linear_->encode(part, workspace.open, ids);
    } else {
        merge_piece(vocabulary_, part, readable, ids);
    }
}

void Tokenizer::encode_long(std::string_view part, std::size_t readable, Workspace& workspace,
                            std::vector<TokenId>& ids) const {
    const TokenId whole = vocabulary_.find(part);  // indentation, mostly, which linear_ would find letter by letter
    if (whole == kNoToken) return split_part(part, readable, workspace, ids);
    ids.push_back(whole);
}

void Tokenizer::encode_parts(std::string_view text, std::size_t start, const std::size_t* ends, std::size_t count,
                             Workspace& workspace, std::vector<TokenId>& ids) const {
    struct Part {
        ShortWord word;  // of its first bytes, where it is longer
        std::uint64_t hash;
    };
    std::array<Part, Pretokenizer::kMost> parts;
    const WordTable& words = vocabulary_.words();
    for (std::size_t i = 0, from = start; i < count; from = ends[i++]) {
        const std::size_t size = std::min(ends[i] - from, ShortWord::kMost);
        parts[i].word = ShortWord::of(text.data() + from, size, text.size() - from);
        parts[i].hash = parts[i].word.hash();
        words.prefetch_slot(parts[i].hash);
    }
    for (std::size_t i = 0; i < count; ++i) {
        if (!words.prefetch_word(parts[i].hash)) workspace.cache.prefetch(parts[i].hash);
    }
    for (std::size_t i = 0, from = start; i < count; from = ends[i++]) {
        const std::string_view part = text.substr(from, ends[i] - from);
        if (part.size() > ShortWord::kMost) {
            encode_long(part, text.size() - from, workspace, ids);
            continue;
        }
        if (const TokenId whole = words.find(parts[i].word, parts[i].hash); whole != kNoToken) {
            ids.push_back(whole);
            continue;
        }
        PieceCache::Entry& entry = workspace.cache.entry(parts[i].hash);
        if (PieceCache::holds(entry, parts[i].word)) {
            ids.insert(ids.end(), entry.ids.begin(), entry.ids.begin() + entry.count);
            continue;
        }
        const std::size_t before = ids.size();
        split_part(part, text.size() - from, workspace, ids);
        PieceCache::store(entry, parts[i].word, ids.data() + before, ids.size() - before);
    }
}

void Tokenizer::encode(std::string_view text, const SpecialMatcher& allowed, std::vector<TokenId>& ids) const {
    encode_while(text, allowed, ids, [] { return true; });
}

std::size_t Tokenizer::count(std::string_view text, const SpecialMatcher& allowed) const {
    std::vector<TokenId> ids;
    std::size_t total = 0;
    encode_while(text, allowed, ids, [&] {
        total += ids.size();
        ids.clear();
        return true;
    });
    return total;
}

std::size_t Tokenizer::truncate(std::string_view text, const SpecialMatcher& allowed, std::size_t limit) const {
    std::vector<TokenId> ids;
    encode_while(text, allowed, ids, [&] { return ids.size() <= limit; });
    if (ids.size() <= limit) return text.size();
    std::vector<std::size_t> ends{0};  // byte where each of the first `limit` tokens ends
    for (std::size_t i = 0; i < limit; ++i) ends.push_back(ends.back() + token_bytes(ids[i]).size());
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
    ByteBuffer out(ids.size());
    append_bytes(ids.size(), [&](std::size_t i) { return ids[i]; }, out);
    return std::string(out.view());
}

}  // namespace qwenvl
