// Whole words to tokens with one memory access: the bytes lie in the slot, not behind an index.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "qwenvl/hash.hpp"

namespace qwenvl {

using TokenId = std::uint32_t;
constexpr TokenId kNoToken = 0xFFFFFFFFu;

class WordTable {
public:
    static constexpr std::size_t kLongest = 16;

    // At most kLongest bytes, zeros behind them.
    struct Key {
        std::uint64_t low, high;
        std::uint32_t size;

        bool operator==(const Key& other) const { return low == other.low && high == other.high && size == other.size; }
        std::uint64_t hash() const {
            return fold_multiply(low ^ 0x9E3779B97F4A7C15u, high + size + 0xD6E8FEB86659FD93u);
        }
    };

    // `size` <= kLongest bytes at `word`, of which `readable` >= size may be read.
    static Key key_of(const char* word, std::size_t size, std::size_t readable) {
        const auto count = static_cast<std::uint32_t>(size);
        if (size <= 8) return {first_bytes(word, size, readable), 0, count};
        return {first_bytes(word, 8, readable), first_bytes(word + 8, size - 8, readable - 8), count};
    }

    // Room for so many words of at most 8 bytes, and of more.
    void reserve(std::size_t short_words, std::size_t long_words) {
        short_.reserve(short_words);
        long_.reserve(long_words);
        present_.assign(std::size_t{1} << (kPresentBits - 6), 0);
    }

    // The token already there with these bytes, or kNoToken when `id` was put in.
    TokenId insert(const Key& key, TokenId id) {
        const std::uint64_t bit = key.hash() >> (64 - kPresentBits);
        present_[bit / 64] |= std::uint64_t{1} << (bit % 64);
        if (key.size <= 8) return short_.insert({key.low, id, key.size}, key);
        return long_.insert({key.low, key.high, id, key.size}, key);
    }

    // Token with exactly these bytes, or kNoToken.
    TokenId find(const Key& key) const { return key.size <= 8 ? short_.find(key) : long_.find(key); }

    // The same, faster where there is none: it reads a bit of a table that stays in the processor's near caches.
    TokenId find_unlikely(const Key& key) const {
        const std::uint64_t bit = key.hash() >> (64 - kPresentBits);
        return present_[bit / 64] >> (bit % 64) & 1 ? find(key) : kNoToken;
    }

private:
    static constexpr int kPresentBits = 21;  // 256 KiB

    struct ShortSlot {
        std::uint64_t low;
        TokenId id;
        std::uint32_t size;

        bool holds(const Key& key) const { return low == key.low && size == key.size; }
    };

    struct LongSlot {
        std::uint64_t low, high;
        TokenId id;
        std::uint32_t size;

        bool holds(const Key& key) const { return low == key.low && high == key.high && size == key.size; }
    };

    template <typename Slot>
    struct Table {
        std::vector<Slot> slots;
        std::size_t mask = 0;

        void reserve(std::size_t count) {
            std::size_t capacity = 16;
            while (capacity < 2 * count) capacity *= 2;
            slots.assign(capacity, Slot{});
            mask = capacity - 1;
        }

        // A slot without a size is empty.
        std::size_t place(const Key& key) const {
            std::size_t at = key.hash() & mask;
            while (slots[at].size != 0 && !slots[at].holds(key)) at = (at + 1) & mask;
            return at;
        }

        TokenId insert(const Slot& word, const Key& key) {
            Slot& slot = slots[place(key)];
            if (slot.size != 0) return slot.id;
            slot = word;
            return kNoToken;
        }

        TokenId find(const Key& key) const {
            const Slot& slot = slots[place(key)];
            return slot.size != 0 ? slot.id : kNoToken;
        }
    };

    static std::uint64_t first_bytes(const char* data, std::size_t size, std::size_t readable) {
        if (readable < 8) return load_tail(data, size);
        std::uint64_t word;
        std::memcpy(&word, data, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        return size == 8 ? word : word & ~(~std::uint64_t{0} >> (8 * size));
#else
        return word & (~std::uint64_t{0} >> (64 - 8 * size));
#endif
    }

    std::vector<std::uint64_t> present_;
    Table<ShortSlot> short_;
    Table<LongSlot> long_;
};

}  // namespace qwenvl
