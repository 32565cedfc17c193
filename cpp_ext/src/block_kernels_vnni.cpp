// AVX-512 with VNNI: 64 products of bytes an instruction, added up by fours.
#include "qwenvl/block_kernels.hpp"

#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own intrinsics
#endif

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#define QWENVL_VNNI __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni")))

namespace qwenvl::vnni {
namespace {

constexpr std::size_t kChunkBytes = 64, kGroups = 16;
constexpr float kMost = 127;  // an activation
constexpr std::size_t kAhead = 16384;  // weights that are fetched before their turn: they come from memory

// Of a chunk of which so many bytes are left.
inline __mmask64 bytes_there(std::size_t left) {
    return left >= kChunkBytes ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
}

QWENVL_VNNI inline __m512i low_halves(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(0xF)); }
QWENVL_VNNI inline __m512i high_halves(__m512i bytes) { return low_halves(_mm512_srli_epi16(bytes, 4)); }

// In a fixed order: halves onto each other.
QWENVL_VNNI inline float sum_of(__m512 v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// The block scales of a row of weights, a lane for each group of four bytes of a chunk.
class GroupScales {
public:
    QWENVL_VNNI explicit GroupScales(const BlockMatrix& matrix) : blocks_(matrix.blocks()) {
        const std::size_t group = matrix.bits == 4 ? 8 : 4, chunk = group * kGroups;
        shared_ = std::max<std::size_t>(matrix.block / chunk, 1);      // chunks of a block
        step_ = std::max<std::size_t>(chunk / matrix.block, 1);        // blocks of a chunk
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

// kOutputs rows of weights beside kCount rows of activations, which are loaded once for all of them.
template <int kBits, int kCount, int kOutputs>
QWENVL_VNNI inline void few_outputs(const BlockMatrix& matrix, const RoundedRows& rows, std::size_t row,
                                    const GroupScales& group_scales, const float* bias, std::size_t output, float* y) {
    constexpr std::size_t kPlanes = kBits == 4 ? 2 : 1;
    const std::size_t bytes = matrix.row_bytes(), chunks = matrix.chunks();
    __m512 totals[kCount][kOutputs];
    for (auto& total : totals) {
        for (__m512& each : total) each = _mm512_setzero_ps();
    }
    for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
        const __mmask64 there = bytes_there(bytes - chunk * kChunkBytes);
        __m512i low[kOutputs], high[kOutputs];
        __m512 weight_scales[kOutputs];
        for (int i = 0; i < kOutputs; ++i) {
            const std::uint8_t* const at = matrix.packed + (output + i) * bytes + chunk * kChunkBytes;
            const __m512i packed = _mm512_maskz_loadu_epi8(there, at);
            _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead * kBits / 8, _MM_HINT_T1);
            low[i] = kBits == 4 ? low_halves(packed) : packed;
            high[i] = kBits == 4 ? high_halves(packed) : packed;
            weight_scales[i] = group_scales.of(matrix.scales + (output + i) * matrix.blocks(), chunk);
        }
        for (int m = 0; m < kCount; ++m) {
            const std::int8_t* const values = rows.values(row + m) + chunk * kPlanes * kChunkBytes;
            const __m512i start = _mm512_loadu_si512(rows.starts(row + m) + chunk * kGroups);
            const __m512i even = _mm512_loadu_si512(values);
            const __m512i odd = kBits == 4 ? _mm512_loadu_si512(values + kChunkBytes) : even;
            const __m512 scale = _mm512_loadu_ps(rows.group_scales(row + m) + chunk * kGroups);
            for (int i = 0; i < kOutputs; ++i) {
                __m512i sums = _mm512_dpbusd_epi32(start, low[i], even);
                if (kBits == 4) sums = _mm512_dpbusd_epi32(sums, high[i], odd);
                const __m512 both = _mm512_mul_ps(weight_scales[i], scale);
                totals[m][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), both, totals[m][i]);
            }
        }
    }
    for (int m = 0; m < kCount; ++m) {
        float* const to = y + (row + m) * matrix.outputs + output;
        for (int i = 0; i < kOutputs; ++i) to[i] = sum_of(totals[m][i]) + (bias ? bias[output + i] : 0.0f);
    }
}

template <int kBits, int kCount>
QWENVL_VNNI void few(const BlockMatrix& matrix, const RoundedRows& rows, std::size_t row, const float* bias,
                     std::size_t first, std::size_t last, float* y) {
    constexpr int kOutputs = 2;
    const GroupScales scales(matrix);
    std::size_t output = first;
    for (; output + kOutputs <= last; output += kOutputs) {
        few_outputs<kBits, kCount, kOutputs>(matrix, rows, row, scales, bias, output, y);
    }
    for (; output < last; ++output) few_outputs<kBits, kCount, 1>(matrix, rows, row, scales, bias, output, y);
}

// 16 values of a block, rounded to the nearest, halves to even.
QWENVL_VNNI inline __m128i rounded(const float* values, __m512 inverse) {
    return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values), inverse)));
}

// The values of 16-bit lanes' low or high bytes, of two vectors one behind the other.
QWENVL_VNNI inline __m512i low_bytes(__m512i first, __m512i second) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(first)), _mm512_cvtepi16_epi8(second), 1);
}
QWENVL_VNNI inline __m512i high_bytes(__m512i first, __m512i second) {
    return low_bytes(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(second, 8));
}

// 16 rows of 16 groups of four bytes, turned so that a vector has one group of every row.
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

// The weights of 32 outputs, unpacked: by chunk, plane and group, four bytes of each output. Scales by block.
class Panel {
public:
    template <int kBits>
    QWENVL_VNNI void fill(const BlockMatrix& matrix, std::size_t first, std::size_t last) {
        constexpr std::size_t kPlanes = kBits == 4 ? 2 : 1;
        const std::size_t bytes = matrix.row_bytes(), chunks = matrix.chunks();
        bytes_.resize(chunks * kPlanes * kGroups * 2 * kChunkBytes + kChunkBytes);
        std::uint8_t* const to = aligned(bytes_.data());
        for (std::size_t half = 0; half < 2; ++half) {
            for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
                __m512i low[16], high[16];
                for (std::size_t i = 0; i < kGroups; ++i) {
                    const std::size_t output = std::min(first + half * kGroups + i, last - 1);
                    const std::uint8_t* const at = matrix.packed + output * bytes + chunk * kChunkBytes;
                    const __m512i packed = _mm512_maskz_loadu_epi8(bytes_there(bytes - chunk * kChunkBytes), at);
                    low[i] = kBits == 4 ? low_halves(packed) : packed;
                    high[i] = kBits == 4 ? high_halves(packed) : packed;
                }
                transpose(low);
                if (kBits == 4) transpose(high);
                std::uint8_t* const there = to + chunk * kPlanes * kGroups * 2 * kChunkBytes;
                for (std::size_t i = 0; i < kGroups; ++i) {
                    _mm512_store_si512(there + (2 * i + half) * kChunkBytes, low[i]);
                    if (kBits == 4) {
                        _mm512_store_si512(there + (2 * (kGroups + i) + half) * kChunkBytes, high[i]);
                    }
                }
            }
        }
        scales_.resize(matrix.blocks() * kPanelRows);
        for (std::size_t i = 0; i < kPanelRows; ++i) {
            const float* const from = matrix.scales + std::min(first + i, last - 1) * matrix.blocks();
            for (std::size_t b = 0; b < matrix.blocks(); ++b) scales_[b * kPanelRows + i] = from[b];
        }
    }

    const std::uint8_t* bytes() { return aligned(bytes_.data()); }
    const float* scales() const { return scales_.data(); }

private:
    static std::uint8_t* aligned(std::uint8_t* pointer) {
        return reinterpret_cast<std::uint8_t*>((reinterpret_cast<std::uintptr_t>(pointer) + 63) & ~std::uintptr_t{63});
    }

    std::vector<std::uint8_t> bytes_;
    std::vector<float> scales_;
};

QWENVL_VNNI inline __m512i four_bytes(const std::int8_t* at) {
    std::int32_t value;
    std::memcpy(&value, at, sizeof value);
    return _mm512_set1_epi32(value);
}

template <int kBits, int kCount>
QWENVL_VNNI void panel_rows(const BlockMatrix& matrix, const RoundedRows& rows, std::size_t row, Panel& panel,
                            const float* bias, std::size_t first, std::size_t last, float* y) {
    constexpr std::size_t kPlanes = kBits == 4 ? 2 : 1;
    const std::size_t groups = matrix.block / (4 * kPlanes);  // of a block
    const std::int8_t* values[kCount];
    for (int m = 0; m < kCount; ++m) values[m] = rows.values(row + m);
    __m512 totals[kCount][2];
    for (auto& total : totals) total[0] = total[1] = _mm512_setzero_ps();
    for (std::size_t b = 0; b < matrix.blocks(); ++b) {
        __m512i sums[kCount][2];
        for (int m = 0; m < kCount; ++m) sums[m][0] = sums[m][1] = _mm512_set1_epi32(rows.block_starts(row + m)[b]);
        for (std::size_t done = 0; done < groups;) {
            const std::size_t chunk = (b * groups + done) / kGroups, from = (b * groups + done) % kGroups;
            const std::size_t count = std::min(groups - done, kGroups - from);
            for (std::size_t plane = 0; plane < kPlanes; ++plane) {
                const std::size_t place = (chunk * kPlanes + plane) * kGroups + from;
                const std::uint8_t* weights = panel.bytes() + place * 2 * kChunkBytes;
                for (std::size_t i = 0; i < count; ++i, weights += 2 * kChunkBytes) {
                    const __m512i left = _mm512_load_si512(weights), right = _mm512_load_si512(weights + kChunkBytes);
                    for (int m = 0; m < kCount; ++m) {
                        const __m512i value = four_bytes(values[m] + (place + i) * 4);
                        sums[m][0] = _mm512_dpbusd_epi32(sums[m][0], left, value);
                        sums[m][1] = _mm512_dpbusd_epi32(sums[m][1], right, value);
                    }
                }
            }
            done += count;
        }
        const __m512 left = _mm512_loadu_ps(panel.scales() + b * kPanelRows);
        const __m512 right = _mm512_loadu_ps(panel.scales() + b * kPanelRows + kGroups);
        for (int m = 0; m < kCount; ++m) {
            const __m512 scale = _mm512_set1_ps(rows.scales(row + m)[b]);
            totals[m][0] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[m][0]), left), scale, totals[m][0]);
            totals[m][1] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[m][1]), right), scale, totals[m][1]);
        }
    }
    for (std::size_t half = 0; half < 2 && first + half * kGroups < last; ++half) {
        const std::size_t output = first + half * kGroups, count = std::min(last - output, kGroups);
        const auto there = static_cast<__mmask16>((1u << count) - 1);
        const __m512 offset = bias ? _mm512_maskz_loadu_ps(there, bias + output) : _mm512_setzero_ps();
        for (int m = 0; m < kCount; ++m) {
            float* const to = y + (row + m) * matrix.outputs + output;
            _mm512_mask_storeu_ps(to, there, _mm512_add_ps(totals[m][half], offset));
        }
    }
}

template <int kBits>
QWENVL_VNNI void all_rows(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                          std::size_t last, float* y) {
    thread_local Panel panel;
    panel.fill<kBits>(matrix, first, last);
    std::size_t row = 0;
    for (; row + 6 <= rows.count(); row += 6) panel_rows<kBits, 6>(matrix, rows, row, panel, bias, first, last, y);
    for (; row + 3 <= rows.count(); row += 3) panel_rows<kBits, 3>(matrix, rows, row, panel, bias, first, last, y);
    for (; row < rows.count(); ++row) panel_rows<kBits, 1>(matrix, rows, row, panel, bias, first, last, y);
}

}  // namespace

QWENVL_VNNI void round_row(const BlockMatrix& matrix, const float* values, const RoundedRow& out) {
    const std::size_t planes = matrix.planes(), chunks = matrix.chunks();
    _mm512_storeu_si512(out.values + (chunks * planes - 1) * kChunkBytes, _mm512_setzero_si512());
    _mm512_storeu_si512(out.values + (chunks - 1) * planes * kChunkBytes, _mm512_setzero_si512());
    for (std::size_t b = 0; b < matrix.blocks(); ++b) {
        const std::size_t first = b * matrix.block, last = first + matrix.block;
        __m512 most_of = _mm512_setzero_ps();
        for (std::size_t i = first; i < last; i += 16) {
            most_of = _mm512_max_ps(most_of, _mm512_abs_ps(_mm512_loadu_ps(values + i)));
        }
        const float most = _mm512_reduce_max_ps(most_of), inverse = most > 0 ? kMost / most : 0.0f;
        out.scales[b] = most / kMost;
        for (std::size_t i = first; i < last; i += 16) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out.values + i), rounded(values + i, _mm512_set1_ps(inverse)));
        }
    }
    const GroupScales group_scales(matrix);
    const __m512i ones = _mm512_set1_epi8(1);
    for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
        std::int8_t* const at = out.values + chunk * planes * kChunkBytes;
        const __m512i first = _mm512_loadu_si512(at);
        __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, first);
        if (planes == 2) {
            const __m512i second = _mm512_loadu_si512(at + kChunkBytes);
            const __m512i even = low_bytes(first, second), odd = high_bytes(first, second);
            _mm512_storeu_si512(at, even);
            _mm512_storeu_si512(at + kChunkBytes, odd);
            sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, even), ones, odd);
        }
        const __m512i starts = _mm512_mullo_epi32(sums, _mm512_set1_epi32(-matrix.zero()));
        _mm512_storeu_si512(out.starts + chunk * kGroups, starts);
        _mm512_storeu_ps(out.group_scales + chunk * kGroups, group_scales.of(out.scales, chunk));
    }
    const std::size_t groups = matrix.block / (4 * planes);  // of a block
    for (std::size_t b = 0; b < matrix.blocks(); ++b) {
        std::int32_t start = 0;
        for (std::size_t i = 0; i < groups; ++i) start += out.starts[b * groups + i];
        out.block_starts[b] = start;
    }
}

void multiply_few(const BlockMatrix& matrix, const RoundedRows& rows, std::size_t row, std::size_t count,
                  const float* bias, std::size_t first, std::size_t last, float* y) {
    using Few = void(const BlockMatrix&, const RoundedRows&, std::size_t, const float*, std::size_t, std::size_t, float*);
    static constexpr Few* kFew[2][kFewRows] = {{few<4, 1>, few<4, 2>, few<4, 3>, few<4, 4>},
                                               {few<8, 1>, few<8, 2>, few<8, 3>, few<8, 4>}};
    kFew[matrix.bits == 8][count - 1](matrix, rows, row, bias, first, last, y);
}

void multiply_panel(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                    std::size_t last, float* y) {
    (matrix.bits == 4 ? all_rows<4> : all_rows<8>)(matrix, rows, bias, first, last, y);
}

bool supported() {
    static const bool there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512vnni");
    return there;
}

}  // namespace qwenvl::vnni

#endif
