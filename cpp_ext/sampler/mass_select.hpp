// The key at which the running sum of weights, in the order of their keys, crosses a target. O(n), without sorting.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qwenvl {

struct Crossing {
    std::uint32_t key;   // the key at which the sum reaches the target
    double mass_before;  // sum of the weights with smaller keys
    bool found;          // false: all weights together stay below the target
};

// An integer that is ordered like the float, which must not be negative.
inline std::uint32_t ordered_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Radix descent over 32-bit keys, 11 + 11 + 10 bits: key_of(i) and weight_of(i) for i < size.
template <typename KeyOf, typename WeightOf>
Crossing find_crossing(std::size_t size, double target, KeyOf key_of, WeightOf weight_of) {
    std::array<double, 2048> mass;
    std::uint32_t prefix = 0;
    double before = 0;
    for (int level = 0; level < 3; ++level) {
        const int shift = level == 0 ? 21 : level == 1 ? 10 : 0;
        const int bits = level == 2 ? 10 : 11;
        mass.fill(0);
        for (std::size_t i = 0; i < size; ++i) {
            const std::uint32_t key = key_of(i);
            if (level > 0 && (key >> (shift + bits)) != prefix) continue;
            mass[key >> shift & ((1u << bits) - 1)] += weight_of(i);
        }
        std::uint32_t bucket = 0;
        const std::uint32_t last = (1u << bits) - 1;
        for (; bucket < last && (mass[bucket] == 0 || before + mass[bucket] < target); ++bucket) before += mass[bucket];
        if (before + mass[bucket] < target && level == 0) return {0, before, false};
        prefix = prefix << bits | bucket;
    }
    return {prefix, before, true};
}

}  // namespace qwenvl
