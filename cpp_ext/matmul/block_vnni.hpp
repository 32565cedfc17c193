// Helpers of the kernels that use VNNI, whose instruction adds up 64 products of bytes in groups of four.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "matmul/block_kernels.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define QWENVL_VNNI __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni")))

namespace qwenvl::vnni {

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

}  // namespace qwenvl::vnni
