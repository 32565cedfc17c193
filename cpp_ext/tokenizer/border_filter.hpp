// Where byte-pair merging can never join two neighbouring characters.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace qwenvl {

// Remembers how the two tokens of each merge meet: which character, or which single byte of one, ends the left one and
// begins the right one. At a border between characters where no merge meets like that, none ever happens, so both
// sides are encoded on their own. About half of the borders in Chinese text are such.
class BorderFilter {
public:
    BorderFilter();

    // A merge of two tokens with these bytes.
    void add(std::string_view left, std::string_view right);

    // False when no merge can happen across the border of two code points; sometimes true without one.
    bool may_merge(std::uint32_t before, std::uint32_t after) const {
        return bit(pairs_, hash(before, after)) | may_merge_part(before, after);
    }

    // The same for merges that at the border see only a part of one of the characters, or of both.
    bool may_merge_part(std::uint32_t before, std::uint32_t after) const {
        const bool rare = (joins_[clamp(before)] & kPartBehind) | (joins_[clamp(after)] & kPartInFront);
        return rare && find_part(before, after);
    }

private:
    using Bits = std::vector<std::uint64_t>;

    static constexpr int kHashBits = 20;  // 128 KiB, of which Qwen's vocabulary sets 26,000 bits
    static constexpr std::size_t kClamp = 0xFFFF;
    static constexpr std::uint8_t kPartInFront = 1, kPartBehind = 2;

    static std::uint64_t hash(std::uint32_t before, std::uint32_t after) {
        return (before * 0x9E3779B97F4A7C15u + after * 0xC2B2AE3D27D4EB4Fu) >> (64 - kHashBits);
    }
    static std::size_t clamp(std::uint32_t value) { return value < kClamp ? value : kClamp; }
    static std::uint64_t bit(const Bits& bits, std::size_t at) { return bits[at / 64] >> (at % 64) & 1; }

    void mark_ends_with(unsigned char last_byte);
    bool find_part(std::uint32_t before, std::uint32_t after) const;

    Bits pairs_;                       // of symbols that meet, by hash
    std::vector<std::uint8_t> joins_;  // by character: whether `pairs_` may join it, or its last byte, with a part of
                                       // one; those above the Basic Multilingual Plane share the last entry
};

}  // namespace qwenvl
