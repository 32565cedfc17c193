#include "tokenizer/longest_prefixes.hpp"

#include <algorithm>
#include <array>

namespace qwenvl {
namespace {

// A prefix that may be a token; size 0: there is none.
struct Prefix {
    std::size_t size = 0;
    std::uint64_t hash = 0;
};

// The longest prefix of at most `size` bytes that passes the bit filter; false positives are rare.
Prefix likely_prefix(const Vocabulary& vocabulary, std::string_view bytes, std::size_t size) {
    for (; size > ShortWord::kMost; --size) {
        if (vocabulary.find(bytes.substr(0, size)) != kNoToken) return {size, 0};
    }
    for (; size > 0; --size) {
        const std::uint64_t hash = ShortWord::of(bytes.data(), size, Vocabulary::kPadding).hash();
        if (vocabulary.words().may_hold(hash)) return {size, hash};
    }
    return {};
}

}  // namespace

std::vector<TokenId> longest_prefixes(const Vocabulary& vocabulary) {
    constexpr TokenId kTogether = 64;
    std::array<Prefix, kTogether> likely;
    std::vector<TokenId> found(vocabulary.size(), kNoToken);
    const WordTable& words = vocabulary.words();
    for (std::size_t start = 0; start < found.size(); start += kTogether) {
        const auto first = static_cast<TokenId>(start);
        const auto count = static_cast<TokenId>(std::min<std::size_t>(kTogether, found.size() - start));
        for (TokenId i = 0; i < count; ++i) {
            const std::string_view bytes = vocabulary.bytes(first + i);
            likely[i] = likely_prefix(vocabulary, bytes, bytes.size() - 1);
            words.prefetch_slot(likely[i].hash);
        }
        for (TokenId i = 0; i < count; ++i) words.prefetch_word(likely[i].hash);
        for (TokenId i = 0; i < count; ++i) {
            const std::string_view bytes = vocabulary.bytes(first + i);
            for (Prefix prefix = likely[i]; prefix.size > 0;
                 prefix = likely_prefix(vocabulary, bytes, prefix.size - 1)) {
                found[first + i] = vocabulary.find(bytes.substr(0, prefix.size), Vocabulary::kPadding);
                if (found[first + i] != kNoToken) break;
            }
        }
    }
    return found;
}

}  // namespace qwenvl
