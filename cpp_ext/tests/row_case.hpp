// One product of a tower's layer over random numbers, by every kernel of this processor. Every array ends where its
// memory ends, so that a sanitizer sees an access outside.
#pragma once

#include <algorithm>
#include <string>

#include "block_case.hpp"
#include "matmul/row_matmul.hpp"
#include "simd/instruction_set.hpp"

namespace qwenvl {

struct RowCase {
    std::size_t inputs, outputs, rows;
    bool has_bias;
    std::uint64_t seed;
};

// The product; empty if its rows were not told as complete one after another, each once for each task.
inline std::unique_ptr<float[]> row_product(const RowCase& given, const RowMatrix& matrix, const float* x,
                                            const float* bias) {
    ByteRows rows;
    rows.reset(given.rows, given.inputs);
    for (std::size_t i = given.rows; i-- > 0;) rows.round(i, x + i * given.inputs);
    std::unique_ptr<float[]> y(new float[given.rows * given.outputs]);
    const std::size_t each = outputs_per_task(matrix);
    for (std::size_t at = 0; at < given.outputs; at += each) {
        std::size_t complete = 0;
        bool in_order = true;
        multiply(matrix, rows, bias, at, std::min(at + each, given.outputs), y.get(),
                 [&](std::size_t from, std::size_t to) {
                     in_order = in_order && from == complete && to > from;
                     complete = to;
                 });
        if (!in_order || complete != given.rows) return nullptr;
    }
    return y;
}

// Names the first kernels whose results are not those of the portable ones; empty if there are none.
inline std::string other_row_kernels(const RowCase& given) {
    std::mt19937_64 random(given.seed);
    const auto weights = random_array<std::int8_t>(given.inputs * given.outputs, random, -127, 127);
    const auto scales = random_array<float>(given.outputs, random, 1e-4, 1e-2);
    const auto bias = random_array<float>(given.outputs, random, -1, 1);
    BlockCase numbers{8, std::min<std::size_t>(given.inputs, 32), given.inputs, given.outputs, given.rows, true, 0};
    const auto x = random_rows(numbers, random);
    const RowMatrix matrix{given.outputs, given.inputs, weights.get(), scales.get()};
    const float* const added = given.has_bias ? bias.get() : nullptr;
    use_multiply("portable");
    use_kernels("portable");
    const auto wanted = row_product(given, matrix, x.get(), added);
    std::string other = wanted == nullptr ? "portable, the rows that are told," : "";
    const auto compare = [&](const std::string& name) {
        const auto found = row_product(given, matrix, x.get(), added);
        if (found == nullptr) other = name + ", the rows that are told,";
        for (std::size_t i = 0; i < given.rows * given.outputs && other.empty(); ++i) {
            if (!same(found[i], wanted[i])) other = name;
        }
    };
    for (const std::string& name : kernel_variants()) {
        use_kernels(name);
        compare(name);
    }
    use_kernels(kernel_variants()[0]);
    for (const std::string& name : multiply_variants()) {
        use_multiply(name);
        compare(name);
    }
    use_multiply(multiply_variants()[0]);
    return other;
}

}  // namespace qwenvl
