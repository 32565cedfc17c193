// Borders between characters that byte-pair merging never crosses.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace qwenvl {

// For each merge it remembers the last symbol of the left token and the first symbol of the right one; a symbol is a
// character or one byte of it. Where no merge has the two symbols of a border, no merge crosses the border, so both
// sides can be encoded on their own. About half of the borders in Chinese text are of this kind.
class BorderFilter {
public:
    BorderFilter();

    // Adds the merge of two tokens with these bytes.
    void add(std::string_view left, std::string_view right);

    // False when no merge crosses the border of two code points. May be true where none does.
    bool may_merge(std::uint32_t before, std::uint32_t after) const {
        return bit(pairs_, hash(before, after)) | may_merge_part(before, after);
    }

    // The same for merges that have a single byte of one of the characters, or of both, at the border.
    bool may_merge_part(std::uint32_t before, std::uint32_t after) const {
        const bool rare = (joins_[clamp(before)] & kPartAfter) | (joins_[clamp(after)] & kPartBefore);
        return rare && find_part(before, after);
    }

private:
    using Bits = std::vector<std::uint64_t>;

    static constexpr int kHashBits = 20;  // 128 KiB, of which Qwen's vocabulary sets 26,000 bits
    static constexpr std::size_t kClamp = 0xFFFF;
    static constexpr std::uint8_t kPartBefore = 1, kPartAfter = 2;

    static std::uint64_t hash(std::uint32_t before, std::uint32_t after) {
        return (before * 0x9E3779B97F4A7C15u + after * 0xC2B2AE3D27D4EB4Fu) >> (64 - kHashBits);
    }
    static std::size_t clamp(std::uint32_t value) { return value < kClamp ? value : kClamp; }
    static std::uint64_t bit(const Bits& bits, std::size_t at) { return bits[at / 64] >> (at % 64) & 1; }

    void mark_ends_with(unsigned char last_byte);
    bool find_part(std::uint32_t before, std::uint32_t after) const;

    Bits pairs_;                       // by hash of the two symbols
    std::vector<std::uint8_t> joins_;  // by character: the sides on which a single byte may be merged with it; those
                                       // above the Basic Multilingual Plane share the last entry
};

}  // namespace qwenvl
