// Up to 15 bytes as a value of 16, which tables compare in two steps.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tokenizer/hash.hpp"

namespace qwenvl {

// As it lies in memory: the bytes, zeros after them, and in the last place their number.
struct ShortWord {
    static constexpr std::size_t kMost = 15;

    std::uint64_t low, high;

    // `size` <= kMost bytes at `bytes`, of which `readable` >= size may be read.
    static ShortWord of(const char* bytes, std::size_t size, std::size_t readable) {
        static constexpr unsigned char kept[2 * sizeof(ShortWord) - 1] = {
            0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
        ShortWord word, mask;
        std::memcpy(&mask, kept + kMost - size, sizeof mask);
        if (readable >= sizeof word) {
            std::memcpy(&word.low, bytes, sizeof word.low);
            std::memcpy(&word.high, bytes + sizeof word.low, sizeof word.high);
        } else {
            word = {load_tail(bytes, std::min(size, sizeof word.low)),
                    size > sizeof word.low ? load_tail(bytes + sizeof word.low, size - sizeof word.low) : 0};
        }
        return {word.low & mask.low, (word.high & mask.high) | last_byte(size)};
    }

    // Stands for a longer one, which lies elsewhere under `number`; equal to no short word.
    static ShortWord too_long(std::uint64_t number) { return {number, last_byte(0xFF)}; }

    std::size_t size() const { return last_byte(high) & 0xFF; }
    bool is_too_long() const { return size() > kMost; }
    const char* data() const { return reinterpret_cast<const char*>(this); }

    bool operator==(const ShortWord& other) const { return ((low ^ other.low) | (high ^ other.high)) == 0; }
    std::uint64_t hash() const { return fold_multiply(low ^ 0x9E3779B97F4A7C15u, high ^ 0xD6E8FEB86659FD93u); }

private:
    // Moves a number from the lowest byte to the one that lies last in memory, or back.
    static std::uint64_t last_byte(std::uint64_t value) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        return value;
#else
        return value << 56 | value >> 56;
#endif
    }
};

}  // namespace qwenvl
