// Helpers of the kernels that use VNNI, whose instruction adds up 64 products of bytes in groups of four.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "matmul/block_kernels.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define QWENVL_VNNI __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni")))

namespace qwenvl::vnni {

bool supported();
RoundRow round_row;
Multiply multiply_few, multiply_panel;

// Mask of the bytes of a chunk that exist when `left` bytes are left.
inline __mmask64 bytes_there(std::size_t left) {
    return left >= kChunkBytes ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
}

QWENVL_VNNI inline __m512i low_halves(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(0xF)); }
QWENVL_VNNI inline __m512i high_halves(__m512i bytes) { return low_halves(_mm512_srli_epi16(bytes, 4)); }

// The scales of a chunk of kStep blocks from `scales`, one lane per group.
template <int kStep>
QWENVL_VNNI inline __m512 lane_scales(const float* scales) {
    if constexpr (kStep == 1) return _mm512_set1_ps(*scales);
    if constexpr (kStep == 2) {
        return _mm512_insertf32x8(_mm512_set1_ps(scales[0]), _mm256_set1_ps(scales[1]), 1);
    }
    const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(scales)), lanes);
}

template <int kStep>
QWENVL_VNNI inline __m512 lane_scales(const Half* scales) {
    const auto all = [&](int i) { return _mm_set1_epi16(static_cast<short>(scales[i])); };
    if constexpr (kStep == 1) return _mm512_cvtph_ps(_mm256_broadcastsi128_si256(all(0)));
    if constexpr (kStep == 2)
        return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(all(0)), all(1), 1));
    long long four;
    std::memcpy(&four, scales, sizeof four);
    const __m256i lanes = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3,  //
                                           4, 5, 4, 5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7);
    return _mm512_cvtph_ps(_mm256_shuffle_epi8(_mm256_set1_epi64x(four), lanes));
}

// Rounds the blocks of a row to the nearest integers, halves to even: put(i, found) takes 16 of them from number i on.
// Scales lie `stride` apart.
template <typename Put>
QWENVL_VNNI inline void round_blocks(const BlockMatrix& matrix, const float* values, Put put, float* scales,
                                     std::size_t stride) {
    const __m512 infinity = _mm512_set1_ps(std::numeric_limits<float>::infinity());
    for (std::size_t b = 0; b < matrix.blocks(); ++b) {
        const std::size_t first = b * matrix.block, last = first + matrix.block;
        __m512 most_of = _mm512_setzero_ps();
        __mmask16 is_finite = 0xFFFF;
        for (std::size_t i = first; i < last; i += 16) {
            const __m512 size = _mm512_abs_ps(_mm512_loadu_ps(values + i));
            most_of = _mm512_max_ps(most_of, size);
            is_finite &= _mm512_cmp_ps_mask(size, infinity, _CMP_LT_OQ);
        }
        const float most = _mm512_reduce_max_ps(most_of), inverse = inverse_of(most);
        const bool is_number = is_finite == 0xFFFF;
        scales[b * stride] = is_number ? most / kMost : std::numeric_limits<float>::quiet_NaN();
        for (std::size_t i = first; i < last; i += 16) {
            const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(values + i), _mm512_set1_ps(inverse));
            put(i, is_number ? _mm512_cvtps_epi32(scaled) : _mm512_setzero_si512());
        }
    }
}

// Transposes 16 rows of 16 groups of four bytes, so that a vector holds one group of every row.
QWENVL_VNNI inline void transpose(__m512i (&v)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xDD);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
        v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
    }
}

}  // namespace qwenvl::vnni
