// The encodings of short parts that are not one token and are often repeated: names, identifiers, inflections.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "tokenizer/word_table.hpp"

namespace qwenvl {

// Direct-mapped and of fixed size (256 KiB).
class PieceCache {
public:
    static constexpr std::size_t kMaxIds = 11;

    struct Entry {
        ShortWord key{};
        std::uint32_t count = 0;  // 0: empty
        std::array<TokenId, kMaxIds> ids{};
    };

    PieceCache() : entries_(std::size_t{1} << kEntryBits) {}

    // The entry that holds the part's encoding, or where it may be stored.
    Entry& entry(std::uint64_t hash) { return entries_[hash >> (64 - kEntryBits)]; }

    void prefetch(std::uint64_t hash) const { __builtin_prefetch(&entries_[hash >> (64 - kEntryBits)]); }

    static bool holds(const Entry& entry, const ShortWord& key) { return entry.count != 0 && entry.key == key; }

    static void store(Entry& entry, const ShortWord& key, const TokenId* ids, std::size_t count) {
        if (count > kMaxIds) return;
        entry.key = key;
        entry.count = static_cast<std::uint32_t>(count);
        for (std::size_t i = 0; i < count; ++i) entry.ids[i] = ids[i];
    }

private:
    static constexpr int kEntryBits = 12;

    std::vector<Entry> entries_;
};

}  // namespace qwenvl
