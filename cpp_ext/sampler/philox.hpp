// Philox4x32-10, a counter-based random generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
#pragma once

#include <array>
#include <cstdint>

namespace qwenvl {

inline std::array<std::uint32_t, 4> philox(std::uint64_t seed, std::uint64_t counter) {
    std::array<std::uint32_t, 4> x{static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0,
                                   0};
    auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t a = std::uint64_t{0xD2511F53u} * x[0], b = std::uint64_t{0xCD9E8D57u} * x[2];
        x = {static_cast<std::uint32_t>(b >> 32) ^ x[1] ^ key0, static_cast<std::uint32_t>(b),
             static_cast<std::uint32_t>(a >> 32) ^ x[3] ^ key1, static_cast<std::uint32_t>(a)};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return x;
}

// The `counter`-th number of stream `seed`, uniform in [0, 1) with 53 bits.
inline double uniform(std::uint64_t seed, std::uint64_t counter) {
    const auto x = philox(seed, counter);
    const std::uint64_t bits = (std::uint64_t{x[0]} << 32 | x[1]) >> 11;
    return static_cast<double>(bits) * (1.0 / 9007199254740992.0);
}

}  // namespace qwenvl
