// Short words to tokens and back.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tokenizer/short_word.hpp"

namespace qwenvl {

using TokenId = std::uint32_t;
constexpr TokenId kNoToken = 0xFFFFFFFFu;

// A hash table of four bytes per slot, small enough for a processor's second cache: an id and, in the bits above it, a
// part of the hash. The bytes lie in one array by id, where those of frequent tokens are neighbours.
class WordTable {
public:
    // Makes room for `count` words and a hidden one. Must be called once, before the first is appended.
    void reserve(std::size_t count) {
        words_.reset(new ShortWord[count + 1]);
        present_.assign(std::size_t{1} << (kPresentBits - 6), 0);
        int id_bits = 1;
        while (count >> id_bits != 0) ++id_bits;
        id_mask_ = (TokenId{1} << id_bits) - 1;  // not an id itself
        std::size_t capacity = 16;
        while (2 * capacity < 3 * count) capacity *= 2;
        slots_.assign(capacity, kNoToken);
        mask_ = capacity - 1;
    }

    // Gives the word the next id and fetches what `index` will read. It is found only after `index`.
    void append(const ShortWord& word) {
        words_[size_++] = word;
        const std::uint64_t hash = word.hash();
        prefetch_slot(hash);
        __builtin_prefetch(&present_[(hash >> (64 - kPresentBits)) / 64]);
    }

    // Gives the next id to a word that is never found: a placeholder for a longer one, or the padding after the last.
    void append_hidden(const ShortWord& word) { words_[size_++] = word; }

    // Puts a short word into the hash table and returns kNoToken, or the token there that has the same bytes.
    TokenId index(TokenId id) {
        const ShortWord word = words_[id];
        const std::uint64_t hash = word.hash(), bit = hash >> (64 - kPresentBits);
        present_[bit / 64] |= std::uint64_t{1} << (bit % 64);
        std::size_t at = hash & mask_;
        for (; slots_[at] != kNoToken; at = (at + 1) & mask_) {
            if (holds(slots_[at], word, hash)) return slots_[at] & id_mask_;
        }
        slots_[at] = tag_of(hash) | id;
        return kNoToken;
    }

    // Token with exactly these bytes, or kNoToken.
    TokenId find(const ShortWord& word) const { return find(word, word.hash()); }
    TokenId find(const ShortWord& word, std::uint64_t hash) const {
        for (std::size_t at = hash & mask_; slots_[at] != kNoToken; at = (at + 1) & mask_) {
            if (holds(slots_[at], word, hash)) return slots_[at] & id_mask_;
        }
        return kNoToken;
    }

    // The same, faster if there is none.
    TokenId find_unlikely(const ShortWord& word) const {
        const std::uint64_t hash = word.hash();
        return may_hold(hash) ? find(word, hash) : kNoToken;
    }

    // False only if `find` finds nothing. Reads one bit of a table that stays in the processor's first caches.
    bool may_hold(std::uint64_t hash) const {
        const std::uint64_t bit = hash >> (64 - kPresentBits);
        return present_[bit / 64] >> (bit % 64) & 1;
    }

    // Fetch what a later `find` will read, in two steps: the slot, then the word that it points to. The second returns
    // false where `find` likely finds nothing.
    void prefetch_slot(std::uint64_t hash) const { __builtin_prefetch(&slots_[hash & mask_]); }
    bool prefetch_word(std::uint64_t hash) const {
        const std::uint32_t slot = slots_[hash & mask_];
        if ((slot & ~id_mask_) != tag_of(hash) || slot == kNoToken) return false;
        __builtin_prefetch(&words_[slot & id_mask_]);
        return true;
    }

    const ShortWord& operator[](TokenId id) const { return words_[id]; }

private:
    static constexpr int kPresentBits = 21;  // 256 KiB

    std::uint32_t tag_of(std::uint64_t hash) const { return static_cast<std::uint32_t>(hash >> 32) & ~id_mask_; }
    bool holds(std::uint32_t slot, const ShortWord& word, std::uint64_t hash) const {
        return (slot & ~id_mask_) == tag_of(hash) && words_[slot & id_mask_] == word;
    }

    std::unique_ptr<ShortWord[]> words_;  // by id
    std::vector<std::uint32_t> slots_;    // kNoToken: empty
    std::vector<std::uint64_t> present_;
    std::size_t size_ = 0, mask_ = 0;
    TokenId id_mask_ = 0;
};

}  // namespace qwenvl
