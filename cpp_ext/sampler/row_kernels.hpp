// Passes over one row of logits. Every variant does the same float operations in the same order, so the results are
// equal to the last bit on every processor: no fused multiply-add, and sums of each block in 16 lanes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwenvl {

constexpr std::size_t kGroup = 512;   // logits per maximum
constexpr std::size_t kBlock = 1024;  // weights per sum

struct RowScan {
    float max;
    bool invalid;  // a NaN or +infinity was seen
};

// Largest logit of `row` [size], and of every kGroup of them into `group_max` [ceil(size / kGroup)].
RowScan scan_row(const float* row, std::size_t size, float* group_max);

// weights[i] = exp((row[i] - max) * inverse_temperature), and their sums by kBlock into `block_sums`.
void exp_row(const float* row, std::size_t size, float max, float inverse_temperature, float* weights,
             double* block_sums);

// Bits of IEEE binary16 and of bfloat16 [size] to float32, exactly.
void widen_float16(const std::uint16_t* row, std::size_t size, float* out);
void widen_bfloat16(const std::uint16_t* row, std::size_t size, float* out);

// Natural logarithm of a positive normal number, equal on every platform, error below 1e-15.
double portable_log(double x);

}  // namespace qwenvl
