// Products on Arm processors with SDOT, which adds up 16 signed products in groups of four (Cortex-A76, A78AE).
#include "matmul/block_kernels.hpp"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <sys/auxv.h>

#include <limits>
#include <vector>

#if defined(__clang__)
#define QWENVL_TARGET __attribute__((target("dotprod")))
#else
#define QWENVL_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

namespace qwenvl::neon_dot {
namespace {

#include "matmul/block_128.inc"

// Of 8 bits: weights less their zero, as signed bytes.
template <int kBits>
QWENVL_TARGET inline Weights unpack(uint8x16_t packed) {
    if constexpr (kBits == 4) return {vandq_u8(packed, vdupq_n_u8(0xF)), vshrq_n_u8(packed, 4)};
    const uint8x16_t centred = veorq_u8(packed, vdupq_n_u8(0x80));
    return {centred, centred};
}

template <int kBits>
QWENVL_TARGET inline int32x4_t products(int32x4_t start, const Weights& weights, int8x16_t even, int8x16_t odd) {
    if constexpr (kBits == 8) return vdotq_s32(vdupq_n_s32(0), vreinterpretq_s8_u8(weights.first), even);
    const int32x4_t sums = vdotq_s32(start, vreinterpretq_s8_u8(weights.first), even);
    return vdotq_s32(sums, vreinterpretq_s8_u8(weights.second), odd);
}

// kRows rows of activations times 16 of a panel's outputs, from `side` on.
template <int kBits, int kRows>
QWENVL_TARGET inline void tile(const BlockMatrix& matrix, const RoundedRows& rows, std::size_t row,
                               const Panel<1>& panel, std::size_t side, float (&found)[kRows][16]) {
    constexpr std::size_t kPlanes = kBits == 4 ? 2 : 1;
    const std::size_t quads = matrix.block / (16 * kPlanes);  // of four groups, per block
    float32x4_t totals[kRows][4];
    for (auto& total : totals) {
        for (float32x4_t& each : total) each = vdupq_n_f32(0);
    }
    const std::uint8_t* weights = panel.bytes() + side * kGroupBytes;
    for (std::size_t b = 0; b < matrix.blocks(); ++b) {
        int32x4_t sums[kRows][4];
        for (int m = 0; m < kRows; ++m) {
            for (int32x4_t& sum : sums[m]) sum = vdupq_n_s32(kBits == 4 ? rows.block_starts(row + m)[b] : 0);
        }
        for (std::size_t quad = b * quads; quad < (b + 1) * quads; ++quad) {
            const std::size_t place = quad / 4 * kPlanes * kChunkBytes + quad % 4 * 16;
            int8x16_t values[kRows][kPlanes];
            for (int m = 0; m < kRows; ++m) {
                for (std::size_t plane = 0; plane < kPlanes; ++plane) {
                    values[m][plane] = vld1q_s8(rows.values(row + m) + place + plane * kChunkBytes);
                }
            }
            for (int group = 0; group < 4; ++group) {
                for (std::size_t plane = 0; plane < kPlanes; ++plane, weights += kWordBytes) {
                    for (int i = 0; i < 4; ++i) {
                        uint8x16_t four = vld1q_u8(weights + 16 * i);
                        if (kBits == 8) four = veorq_u8(four, vdupq_n_u8(0x80));
                        for (int m = 0; m < kRows; ++m) {
                            const int32_t value = vreinterpretq_s32_s8(values[m][plane])[group];
                            sums[m][i] = vdotq_s32(sums[m][i], vreinterpretq_s8_u8(four),
                                                   vreinterpretq_s8_s32(vdupq_n_s32(value)));
                        }
                    }
                }
            }
        }
        const float* const scales = panel.scales() + b * kPanelRows + side;
        for (int m = 0; m < kRows; ++m) {
            for (int i = 0; i < 4; ++i) {
                const float32x4_t scaled = vmulq_f32(vcvtq_f32_s32(sums[m][i]), vld1q_f32(scales + 4 * i));
                totals[m][i] = vfmaq_n_f32(totals[m][i], scaled, rows.scales(row + m)[b]);
            }
        }
    }
    for (int m = 0; m < kRows; ++m) {
        for (int i = 0; i < 4; ++i) vst1q_f32(found[m] + 4 * i, totals[m][i]);
    }
}

template <int kBits, int kRows>
QWENVL_TARGET void panel_rows(const BlockMatrix& matrix, const RoundedRows& rows, std::size_t row,
                              const Panel<1>& panel, const float* bias, std::size_t first, std::size_t last, float* y) {
    for (std::size_t side = 0; first + side < last; side += 16) {
        float found[kRows][16];
        tile<kBits, kRows>(matrix, rows, row, panel, side, found);
        const std::size_t output = first + side, count = std::min<std::size_t>(last - output, 16);
        for (int m = 0; m < kRows; ++m) {
            write(found[m], bias ? bias + output : nullptr, count, y + (row + m) * matrix.outputs + output);
        }
    }
}

template <int kBits>
QWENVL_TARGET void all_rows(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                            std::size_t last, float* y) {
    thread_local Panel<1> panel;
    panel.fill<kBits>(matrix, first, last);
    std::size_t row = 0;
    for (; row + 4 <= rows.count(); row += 4) panel_rows<kBits, 4>(matrix, rows, row, panel, bias, first, last, y);
    for (; row < rows.count(); ++row) panel_rows<kBits, 1>(matrix, rows, row, panel, bias, first, last, y);
}

void multiply_panel(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                    std::size_t last, float* y) {
    (matrix.bits == 4 ? all_rows<4> : all_rows<8>)(matrix, rows, bias, first, last, y);
}

bool supported() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }  // HWCAP_ASIMDDP

}  // namespace
}  // namespace qwenvl::neon_dot

namespace qwenvl {

const MultiplyKernels kNeonDotKernels{"neon-dot", neon_dot::supported, neon_dot::round_row, neon_dot::multiply_few,
                                      neon_dot::multiply_panel};

}  // namespace qwenvl

#endif
