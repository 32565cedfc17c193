// Numbers of 16 bits (IEEE binary16), as a narrow KV cache holds them, one at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace qwenvl {

using Half = std::uint16_t;

constexpr float kLargestHalf = 65504.0f;

inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float widened(Half half) {
    const std::uint32_t sign = (half & 0x8000u) << 16, size = (half & 0x7FFFu) << 13;
    if ((half & 0x7C00u) == 0x7C00u) return float_of(sign | 0x7F800000u | size);
    return float_of(sign | bits_of(float_of(size) * float_of(0x77800000u)));  // 2^112, exact for the smallest too
}

// The nearest half, of two equally near the even one; what is too large becomes the largest.
inline Half narrowed(float value) {
    const std::uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u;
    std::uint32_t size = bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u) return static_cast<Half>(sign | 0x7E00u);
    if (size > bits_of(kLargestHalf)) size = bits_of(kLargestHalf);
    if (size < 0x38800000u) {  // below 2^-14 the place of the last bit is fixed: adding one half rounds to it
        return static_cast<Half>(sign | (bits_of(float_of(size) + 0.5f) - 0x3F000000u));
    }
    const std::uint32_t odd = size >> 13 & 1u;
    return static_cast<Half>(sign | ((size - 0x38000000u + 0xFFFu + odd) >> 13));
}

}  // namespace qwenvl
