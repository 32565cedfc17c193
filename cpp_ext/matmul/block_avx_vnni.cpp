// Products on AVX-VNNI: processors with VNNI's instruction for 256 bits and without AVX-512, such as laptops'.
#include "matmul/block_kernels.hpp"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#include <limits>
#include <vector>

#define QWENVL_TARGET __attribute__((target("avx2,fma,f16c,avxvnni")))

namespace qwenvl::avx_vnni {
namespace {

constexpr int kTileRows = 6;  // rows of a tile: their sums and the weights fill the 16 registers

#include "matmul/block_256.inc"

template <int kBits>
QWENVL_TARGET inline Weights unpack(__m256i packed) {
    if constexpr (kBits == 8) return {packed, packed};
    const __m256i half = _mm256_set1_epi8(0xF);
    return {_mm256_and_si256(packed, half), _mm256_and_si256(_mm256_srli_epi16(packed, 4), half)};
}

template <int kBits>
QWENVL_TARGET inline __m256i products(__m256i start, const Weights& weights, __m256i even, __m256i odd) {
    const __m256i sums = _mm256_dpbusd_avx_epi32(start, weights.first, even);
    return kBits == 4 ? _mm256_dpbusd_avx_epi32(sums, weights.second, odd) : sums;
}

template <int kBits>
QWENVL_TARGET inline __m256i start_of(std::int32_t start) {
    return _mm256_set1_epi32(start);
}

// Adds the products of four groups.
template <int kBits, int kRows>
QWENVL_TARGET inline void add_quad(__m256i (&sums)[kRows][2], const std::uint8_t* weights,
                                   const std::int8_t* const (&values)[kRows], std::size_t place) {
    constexpr int kPlanes = kBits == 4 ? 2 : 1;
    for (int word = 0; word < 4 * kPlanes; ++word, weights += kWordBytes) {
        const __m256i left = load(weights), right = load(weights + 32);
        const std::size_t from = place + word % kPlanes * kChunkBytes + word / kPlanes * kGroupBytes;
        for (int m = 0; m < kRows; ++m) {
            const __m256i value = four_bytes(values[m] + from);
            sums[m][0] = _mm256_dpbusd_avx_epi32(sums[m][0], left, value);
            sums[m][1] = _mm256_dpbusd_avx_epi32(sums[m][1], right, value);
        }
    }
}

// Compilers do not all know this feature by name: leaf 7.1, bit 4 of EAX.
bool supported() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1) != 0;
}

}  // namespace
}  // namespace qwenvl::avx_vnni

namespace qwenvl {

const MultiplyKernels kAvxVnniKernels{"avx-vnni", avx_vnni::supported, avx_vnni::round_row, avx_vnni::multiply_few,
                                      avx_vnni::multiply_panel};

}  // namespace qwenvl

#endif
