// Common parts of the kernels of row_matmul for VNNI and AMX: the weights of a task, packed.
#pragma once

#include <algorithm>
#include <cstring>

#include "matmul/block_vnni.hpp"
#include "matmul/row_kernels.hpp"

namespace qwenvl::row_kernels {

constexpr std::size_t kLanes = 16, kGroup = 4, kGroupBytes = kLanes * kGroup;

// Transposes four rows of 64 bytes into four vectors of 16 groups of four, each of 16 of the columns.
QWENVL_VNNI inline void group_columns(const __m512i (&rows)[kGroup], __m512i (&out)[kGroup]) {
    const __m512i a = _mm512_unpacklo_epi8(rows[0], rows[1]), b = _mm512_unpackhi_epi8(rows[0], rows[1]);
    const __m512i c = _mm512_unpacklo_epi8(rows[2], rows[3]), d = _mm512_unpackhi_epi8(rows[2], rows[3]);
    // Each 128 bits of `quarter` are four columns of one of the four parts of a row.
    const __m512i quarter[4] = {_mm512_unpacklo_epi16(a, c), _mm512_unpackhi_epi16(a, c), _mm512_unpacklo_epi16(b, d),
                                _mm512_unpackhi_epi16(b, d)};
    const __m512i low = _mm512_shuffle_i32x4(quarter[0], quarter[1], 0x44);
    const __m512i high = _mm512_shuffle_i32x4(quarter[0], quarter[1], 0xEE);
    const __m512i low_end = _mm512_shuffle_i32x4(quarter[2], quarter[3], 0x44);
    const __m512i high_end = _mm512_shuffle_i32x4(quarter[2], quarter[3], 0xEE);
    out[0] = _mm512_shuffle_i32x4(low, low_end, 0x88);
    out[1] = _mm512_shuffle_i32x4(low, low_end, 0xDD);
    out[2] = _mm512_shuffle_i32x4(high, high_end, 0x88);
    out[3] = _mm512_shuffle_i32x4(high, high_end, 0xDD);
}

// Weights of up to kRowOutputs outputs: [16 outputs, group of inputs, output, input of the group].
class PackedWeights {
public:
    QWENVL_VNNI void fill(const RowMatrix& matrix, std::size_t first, std::size_t last) {
        groups_ = (matrix.inputs + ByteRows::kInputs - 1) / ByteRows::kInputs * ByteRows::kInputs / kGroup;
        tiles_ = (last - first + 4 * kLanes - 1) / (4 * kLanes) * 4;
        bytes_.resize(tiles_ * groups_ * kGroupBytes);
        for (std::size_t at = first; at < last; at += 4 * kLanes) {
            const __mmask64 there = vnni::bytes_there(last - at);
            std::int8_t* const to = bytes_.data() + (at - first) / kLanes * groups_ * kGroupBytes;
            for (std::size_t g = 0; g < groups_; ++g) {
                __m512i rows[kGroup], found[kGroup];
                for (std::size_t i = 0; i < kGroup; ++i) {
                    const std::size_t k = g * kGroup + i;
                    const __mmask64 mask = k < matrix.inputs ? there : 0;
                    const std::int8_t* const from = matrix.integers + std::min(k, matrix.inputs - 1) * matrix.outputs;
                    rows[i] = _mm512_maskz_loadu_epi8(mask, from + at);
                }
                group_columns(rows, found);
                for (std::size_t i = 0; i < kGroup; ++i) {
                    _mm512_store_si512(to + (i * groups_ + g) * kGroupBytes, found[i]);
                }
            }
        }
    }

    std::size_t groups() const { return groups_; }
    const std::int8_t* tile(std::size_t tile) const { return bytes_.data() + tile * groups_ * kGroupBytes; }

private:
    std::size_t tiles_ = 0, groups_ = 0;
    AlignedVector<std::int8_t> bytes_;
};

// Scales sums of 16 outputs of a row and writes those that exist.
QWENVL_VNNI inline void write_outputs(__m512i sums, const RowMatrix& matrix, float row_scale, const float* bias,
                                      std::size_t output, std::size_t last, float* y) {
    const std::size_t left = std::min(last - output, kLanes);
    const auto there = static_cast<__mmask16>((1u << left) - 1);
    const __m512 scales = _mm512_mul_ps(_mm512_set1_ps(row_scale), _mm512_maskz_loadu_ps(there, matrix.scales + output));
    const __m512 offset = bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(there, bias + output);
    const __m512 found = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), scales), offset);
    _mm512_mask_storeu_ps(y + output, there, found);
}

}  // namespace qwenvl::row_kernels
