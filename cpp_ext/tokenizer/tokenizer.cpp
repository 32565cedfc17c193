#include "tokenizer/tokenizer.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "tokenizer/merging_bpe.hpp"
#include "tokenizer/pretokenizer.hpp"

namespace qwenvl {
namespace {

// Up to this size merging a part's few characters is faster than looking for the longest tokens.
constexpr std::size_t kFewBytes = 64;

}  // namespace

Tokenizer::Tokenizer(std::string_view vocabulary_file, std::vector<SpecialToken> special_tokens,
                     std::size_t linear_after)
    : vocabulary_(vocabulary_file),
      special_tokens_(std::move(special_tokens), vocabulary_.size()),
      linear_(vocabulary_, linear_after) {}

template <typename Use>
void Tokenizer::encode_and(std::string_view text, const SpecialMatcher& allowed, std::vector<TokenId>& ids,
                           Use use) const {
    const WorkspacePool::Lease workspace(workspaces_);
    Pretokenizer::Ends ends;
    for (std::size_t start = 0; start < text.size();) {
        const auto [plain_end, special] = allowed.find(text, start);
        const std::string_view plain = text.substr(start, plain_end - start);
        Pretokenizer pretokenizer(plain);
        for (std::size_t at = 0; at < plain.size(); at = pretokenizer.position()) {
            const LinearBpe* const linear = linear_.get_for(0);
            const std::size_t count = pretokenizer.next(ends, linear ? &linear->borders() : nullptr);
            encode_parts(plain, at, ends.data(), count, *workspace, ids);
            use();
        }
        if (special == nullptr) return;
        ids.push_back(special->id);
        use();
        start = plain_end + special->text.size();
    }
}

void Tokenizer::split_part(std::string_view part, std::size_t readable, Workspace& workspace,
                           std::vector<TokenId>& ids) const {
    const bool is_long = part.size() > ShortWord::kMost;
    const bool has_wide = static_cast<unsigned char>(part[0]) >= 0xE0;  // the first character has three or four bytes
    const LinearBpe* const linear = is_long || has_wide ? linear_.get_for(part.size()) : nullptr;
    if (linear && has_wide && part.size() <= kFewBytes) {
        if (merge_characters(vocabulary_, *linear, part, readable, ids)) return;
    }
    if (linear && is_long) {
        linear->encode(part, workspace.open, ids);
    } else {
        merge_piece(vocabulary_, part, readable, ids);
    }
}

void Tokenizer::encode_long(std::string_view part, std::size_t readable, Workspace& workspace,
                            std::vector<TokenId>& ids) const {
    const TokenId whole = vocabulary_.find(part);  // mostly indentation: one look-up instead of one for each letter
    if (whole == kNoToken) return split_part(part, readable, workspace, ids);
    ids.push_back(whole);
}

void Tokenizer::encode_parts(std::string_view text, std::size_t start, const std::size_t* ends, std::size_t count,
                             Workspace& workspace, std::vector<TokenId>& ids) const {
    struct Part {
        ShortWord word;  // a longer part: its first bytes
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
    encode_and(text, allowed, ids, [] {});
}

std::size_t Tokenizer::count(std::string_view text, const SpecialMatcher& allowed) const {
    std::vector<TokenId> ids;
    std::size_t total = 0;
    encode_and(text, allowed, ids, [&] {
        total += ids.size();
        ids.clear();
    });
    return total;
}

std::string_view Tokenizer::token_bytes(std::int64_t id) const {
    if (static_cast<std::uint64_t>(id) < vocabulary_.size()) return vocabulary_.bytes(static_cast<TokenId>(id));
    const SpecialToken* special = id >= 0 && id < kNoToken ? special_tokens_.find(static_cast<TokenId>(id)) : nullptr;
    if (special == nullptr) {
        throw std::invalid_argument("token id " + std::to_string(id) + " has no text; ids below " +
                                    std::to_string(vocabulary_.size()) + " and special tokens can be decoded");
    }
    return special->text;
}

std::string Tokenizer::decode(const std::vector<std::int64_t>& ids) const {
    std::string bytes;
    bytes.reserve(ids.size() * 6);  // enough for most texts
    for (const std::int64_t id : ids) bytes += token_bytes(id);
    return bytes;
}

}  // namespace qwenvl
