// Helpers of the kernels that use VNNI, whose instruction adds up 64 products of bytes in groups of four.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "matmul/block_matmul.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own intrinsics
#endif

#define QWENVL_VNNI __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni")))

namespace qwenvl::vnni {

// Mask of the bytes of a chunk that exist when `left` bytes are left.
inline __mmask64 bytes_there(std::size_t left) {
    return left >= kChunkBytes ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
}

QWENVL_VNNI inline __m512i low_halves(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(0xF)); }
QWENVL_VNNI inline __m512i high_halves(__m512i bytes) { return low_halves(_mm512_srli_epi16(bytes, 4)); }

// The block scales of a row of weights, one lane per group of a chunk.
class GroupScales {
public:
    QWENVL_VNNI explicit GroupScales(const BlockMatrix& matrix) : blocks_(matrix.blocks()) {
        const std::size_t group = matrix.bits == 4 ? 8 : 4, chunk = group * kGroups;
        shared_ = std::max<std::size_t>(matrix.block / chunk, 1);  // chunks of a block
        step_ = std::max<std::size_t>(chunk / matrix.block, 1);    // blocks of a chunk
        alignas(64) std::int32_t lanes[kGroups];
        for (std::size_t i = 0; i < kGroups; ++i) {
            lanes[i] = static_cast<std::int32_t>(std::min(i * group / matrix.block, step_ - 1));
        }
        lanes_ = _mm512_load_si512(lanes);
    }

    QWENVL_VNNI __m512 of(const float* row, std::size_t chunk) const {
        const std::size_t first = chunk / shared_ * step_;
        if (step_ == 1) return _mm512_set1_ps(row[first]);
        const auto there = static_cast<__mmask16>((1u << std::min(step_, blocks_ - first)) - 1);
        return _mm512_permutexvar_ps(lanes_, _mm512_maskz_loadu_ps(there, row + first));
    }

private:
    std::size_t blocks_, shared_, step_;
    __m512i lanes_;
};

}  // namespace qwenvl::vnni
