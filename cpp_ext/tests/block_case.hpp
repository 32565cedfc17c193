// One product of random numbers, computed by every kernel of this processor. Every array ends where its memory ends, so
// that a sanitizer sees an access outside.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>

#include "matmul/block_matmul.hpp"

namespace qwenvl {

struct BlockCase {
    int bits;
    std::size_t block, inputs, outputs, rows;
    bool has_bias;
    std::uint64_t seed;
    bool has_halves = false;  // the scales are numbers of 16 bits, and given as such, too
};

template <typename T>
std::unique_ptr<T[]> random_array(std::size_t count, std::mt19937_64& random, double low, double high) {
    std::unique_ptr<T[]> array(new T[count]);
    std::uniform_real_distribution<double> values(low, high);
    for (std::size_t i = 0; i < count; ++i) array[i] = static_cast<T>(values(random));
    return array;
}

// Activations with a block of nothing, one of the smallest numbers, and now and then something that is no number.
inline std::unique_ptr<float[]> random_rows(const BlockCase& given, std::mt19937_64& random) {
    std::unique_ptr<float[]> x = random_array<float>(given.rows * given.inputs, random, -3, 3);
    for (std::size_t i = 0; i < given.block; ++i) {
        x[i] = 0;
        x[(given.rows - 1) * given.inputs + i] *= 1e-39f;
    }
    if (random() % 4 == 0) x[random() % (given.rows * given.inputs)] = std::numeric_limits<float>::infinity();
    if (random() % 4 == 0) x[random() % (given.rows * given.inputs)] = std::numeric_limits<float>::quiet_NaN();
    return x;
}

inline std::unique_ptr<float[]> product(const BlockCase& given, const BlockMatrix& matrix, const float* x,
                                        const float* bias) {
    RoundedRows rows;
    rows.reset(matrix, given.rows);
    for (std::size_t i = 0; i < given.rows; ++i) rows.round(i, x + i * given.inputs);
    std::unique_ptr<float[]> y(new float[given.rows * given.outputs]);
    const std::size_t each = outputs_per_task(matrix, rows);
    for (std::size_t at = 0; at < given.outputs; at += each) {
        multiply(matrix, rows, bias, at, std::min(at + each, given.outputs), y.get());
    }
    return y;
}

// The bits of two numbers are equal, or neither is a number.
inline bool same(float a, float b) { return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0; }

// Names the first kernels whose results are not those of the portable ones; empty if there are none.
inline std::string other_kernels(const BlockCase& given) {
    std::mt19937_64 random(given.seed);
    const std::size_t bytes = given.inputs * static_cast<std::size_t>(given.bits) / 8;
    const auto packed = random_array<std::uint8_t>(given.outputs * bytes, random, 0, 256);
    const auto scales = random_array<float>(given.outputs * given.inputs / given.block, random, 1e-4, 1e-2);
    const auto bias = random_array<float>(given.outputs, random, -1, 1);
    const auto x = random_rows(given, random);
    BlockMatrix matrix{given.outputs, given.inputs, given.bits, given.block, packed.get(), scales.get()};
    const std::size_t count = given.outputs * given.inputs / given.block;
    const std::unique_ptr<Half[]> halves(new Half[count]);
    if (given.has_halves) {
        for (std::size_t i = 0; i < count; ++i) scales[i] = widened(halves[i] = narrowed(scales[i]));
        matrix.half_scales = halves.get();
    }
    const float* const added = given.has_bias ? bias.get() : nullptr;
    use_multiply("portable");
    const auto wanted = product(given, matrix, x.get(), added);
    for (const std::string& name : multiply_variants()) {
        use_multiply(name);
        const auto found = product(given, matrix, x.get(), added);
        for (std::size_t i = 0; i < given.rows * given.outputs; ++i) {
            if (!same(found[i], wanted[i])) return name;
        }
    }
    return "";
}

}  // namespace qwenvl
