// A hash for short keys: eight bytes at a time, with folded products of 64 x 64 -> 128 bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace qwenvl {

inline std::uint64_t fold_multiply(std::uint64_t a, std::uint64_t b) {
#if defined(__SIZEOF_INT128__)
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
#else
    const std::uint64_t low = (a & 0xFFFFFFFFu) * (b >> 32), high = (a >> 32) * (b & 0xFFFFFFFFu);
    return (a * b) ^ ((a >> 32) * (b >> 32) + (low >> 32) + (high >> 32));
#endif
}

inline std::uint64_t load_tail(const char* data, std::size_t size) {
    std::uint64_t word = 0;
    std::memcpy(&word, data, size);
    return word;
}

// Hashes are never stored, so they may depend on the byte order.
inline std::uint64_t hash_bytes(std::string_view bytes) {
    constexpr std::uint64_t k0 = 0x9E3779B97F4A7C15u, k1 = 0xD6E8FEB86659FD93u;
    std::uint64_t state = bytes.size() * k1;
    const char* data = bytes.data();
    std::size_t left = bytes.size();
    for (; left > 8; data += 8, left -= 8) state = fold_multiply(state ^ load_tail(data, 8), k0);
    return fold_multiply(state ^ load_tail(data, left), k1);
}

}  // namespace qwenvl
