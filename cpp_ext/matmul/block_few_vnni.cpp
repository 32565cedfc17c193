// Rounding of activations, and products of few rows: each weight is read once, so memory bandwidth bounds them. Several
// stretches of a matrix are read side by side, since a processor fetches ahead in each memory page on its own: on a
// server with DDR5 eight streams reach 0.9 of the fastest way to read memory, four neighbouring rows 0.7.
#include "matmul/block_kernels.hpp"

#if defined(__x86_64__)

#include "matmul/block_vnni.hpp"

namespace qwenvl::vnni {
namespace {

constexpr std::size_t kAheadBytes = 512;  // by which fetching from memory is ahead in each stream

// Streams of weights that are read side by side: as many as the registers hold totals for.
constexpr int streams_of(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }

// Adds the lanes in a fixed order: one half to the other, again and again.
QWENVL_VNNI inline float sum_of(__m512 v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// The sums of four vectors, added in the same order.
QWENVL_VNNI inline __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
    const __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
    const __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0xEE));
    const __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0x55));
    const __m512i firsts = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one));
}

// The places of one chunk in all streams of weights: that in the first stream, and the distance to the next one's.
template <typename Scale>
struct Chunk {
    const std::uint8_t* packed;
    const Scale* scales;
    std::size_t bytes, blocks;
};

// Adds a chunk's products to `totals`; the activations are loaded once for all outputs.
template <int kBits, int kStep, int kCount, int kOutputs, typename Scale>
QWENVL_VNNI inline void add_chunk(const Chunk<Scale>& weights, const RowValues (&rows)[kCount], std::size_t chunk,
                                  __m512 (&totals)[kCount][kOutputs]) {
    constexpr std::size_t kPlanes = kBits == 4 ? 2 : 1;
    __m512i low[kOutputs], high[kOutputs];
    __m512 weight_scales[kOutputs];
    for (int i = 0; i < kOutputs; ++i) {
        const __m512i packed = _mm512_loadu_si512(weights.packed + i * weights.bytes);
        low[i] = kBits == 4 ? low_halves(packed) : packed;
        high[i] = kBits == 4 ? high_halves(packed) : packed;
        weight_scales[i] = lane_scales<kStep>(weights.scales + i * weights.blocks);
    }
    for (int m = 0; m < kCount; ++m) {
        const std::int8_t* const values = rows[m].values + chunk * kPlanes * kChunkBytes;
        const __m512i start = _mm512_loadu_si512(rows[m].starts + chunk * kGroups);
        const __m512i even = _mm512_loadu_si512(values);
        const __m512i odd = kBits == 4 ? _mm512_loadu_si512(values + kChunkBytes) : even;
        const __m512 scale = _mm512_loadu_ps(rows[m].scales + chunk * kGroups);
        for (int i = 0; i < kOutputs; ++i) {
            __m512i sums = _mm512_dpbusd_epi32(start, low[i], even);
            if (kBits == 4) sums = _mm512_dpbusd_epi32(sums, high[i], odd);
            const __m512 both = _mm512_mul_ps(weight_scales[i], scale);
            totals[m][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), both, totals[m][i]);
        }
    }
}

// Writes the sums of kOutputs totals, `apart` outputs from each other.
template <int kOutputs>
QWENVL_VNNI inline void write(const __m512 (&totals)[kOutputs], const float* bias, std::size_t apart, float* to) {
    alignas(16) float found[kOutputs];
    if constexpr (kOutputs % 4 == 0) {
        for (int i = 0; i < kOutputs; i += 4) {
            _mm_store_ps(found + i, sums_of(totals[i], totals[i + 1], totals[i + 2], totals[i + 3]));
        }
    } else {
        for (int i = 0; i < kOutputs; ++i) found[i] = sum_of(totals[i]);
    }
    for (int i = 0; i < kOutputs; ++i) to[i * apart] = found[i] + (bias ? bias[i * apart] : 0.0f);
}

// kOutputs rows of weights, `apart` rows from each other, times kCount rows of activations.
template <int kBits, int kStep, int kCount, int kOutputs, typename Scale>
QWENVL_VNNI inline void few_outputs(const BlockMatrix& matrix, const Scale* scales, const RowShape& shape,
                                    const RowValues (&rows)[kCount], const float* bias, std::size_t output,
                                    std::size_t apart, float* y) {
    Chunk<Scale> at{matrix.packed + output * shape.bytes, scales + output * shape.blocks, apart * shape.bytes,
                    apart * shape.blocks};
    for (int i = 0; i < kOutputs; ++i) shape.prefetch_scales(at.scales + i * at.blocks);
    __m512 totals[kCount][kOutputs];
    for (auto& total : totals) {
        for (__m512& each : total) each = _mm512_setzero_ps();
    }
    std::size_t left = shape.shared;  // chunks until the next block
    for (std::size_t chunk = 0; chunk < shape.whole; ++chunk) {
        for (int i = 0; i < kOutputs; ++i) prefetch(at.packed + i * at.bytes + kAheadBytes);
        add_chunk<kBits, kStep, kCount, kOutputs>(at, rows, chunk, totals);
        const bool next = kStep > 1 || --left == 0;
        if (next) left = shape.shared;
        at.packed += kChunkBytes;
        at.scales += next ? kStep : 0;
    }
    if (shape.last_bytes > 0) {
        LastChunk<Scale> last[kOutputs];
        for (int i = 0; i < kOutputs; ++i) last[i].copy(at.packed + i * at.bytes, at.scales + i * at.blocks, shape);
        const Chunk<Scale> part{last->packed, last->scales, sizeof *last, sizeof *last / sizeof(Scale)};
        add_chunk<kBits, kStep, kCount, kOutputs>(part, rows, shape.whole, totals);
    }
    for (int m = 0; m < kCount; ++m) {
        write(totals[m], bias ? bias + output : nullptr, apart, y + m * matrix.outputs + output);
    }
}

template <int kBits, int kStep, int kCount, typename Scale>
QWENVL_VNNI void few_of(const BlockMatrix& matrix, const Scale* scales, const RoundedRows& rows, const float* bias,
                        std::size_t first, std::size_t last, float* y) {
    constexpr int kStreams = streams_of(kCount);
    const RowShape shape(matrix);
    RowValues row_values[kCount];
    for (int m = 0; m < kCount; ++m) row_values[m] = RowValues(rows, m);
    const std::size_t apart = (last - first) / kStreams;
    for (std::size_t output = first; output < first + apart; ++output) {
        few_outputs<kBits, kStep, kCount, kStreams>(matrix, scales, shape, row_values, bias, output, apart, y);
    }
    for (std::size_t output = first + apart * kStreams; output < last; ++output) {
        few_outputs<kBits, kStep, kCount, 1>(matrix, scales, shape, row_values, bias, output, 1, y);
    }
}

template <int kBits, int kStep, int kCount>
QWENVL_VNNI void few(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                     std::size_t last, float* y) {
    if (matrix.half_scales != nullptr) {
        return few_of<kBits, kStep, kCount>(matrix, matrix.half_scales, rows, bias, first, last, y);
    }
    few_of<kBits, kStep, kCount>(matrix, matrix.scales, rows, bias, first, last, y);
}

// The low or the high bytes of all 16-bit lanes of two vectors, first those of `first`.
QWENVL_VNNI inline __m512i low_bytes(__m512i first, __m512i second) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(first)), _mm512_cvtepi16_epi8(second), 1);
}
QWENVL_VNNI inline __m512i high_bytes(__m512i first, __m512i second) {
    return low_bytes(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(second, 8));
}

// Arranges rounded integers by the groups of the weights, and computes what each group starts from.
QWENVL_VNNI inline void arrange(const BlockMatrix& matrix, const RoundedRow& out) {
    const std::size_t planes = matrix.planes();
    const __m512i ones = _mm512_set1_epi8(1);
    for (std::size_t chunk = 0; chunk < matrix.chunks(); ++chunk) {
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
    }
}

}  // namespace

QWENVL_VNNI void round_row(const BlockMatrix& matrix, const float* values, const RoundedRow& out) {
    const std::size_t planes = matrix.planes(), chunks = matrix.chunks();
    _mm512_storeu_si512(out.values + (chunks * planes - 1) * kChunkBytes, _mm512_setzero_si512());
    _mm512_storeu_si512(out.values + (chunks - 1) * planes * kChunkBytes, _mm512_setzero_si512());
    const auto put = [&](std::size_t i, __m512i found) QWENVL_VNNI {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out.values + i), _mm512_cvtsepi32_epi8(found));
    };
    round_blocks(matrix, values, put, out.scales, 1);
    arrange(matrix, out);
    spread_blocks(matrix, out);
}

void multiply_few(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                  std::size_t last, float* y) {
    static constexpr Multiply* kFew4[3][kFewRows] = {{few<4, 1, 1>, few<4, 1, 2>, few<4, 1, 3>, few<4, 1, 4>},
                                                     {few<4, 2, 1>, few<4, 2, 2>, few<4, 2, 3>, few<4, 2, 4>},
                                                     {few<4, 4, 1>, few<4, 4, 2>, few<4, 4, 3>, few<4, 4, 4>}};
    static constexpr Multiply* kFew8[2][kFewRows] = {{few<8, 1, 1>, few<8, 1, 2>, few<8, 1, 3>, few<8, 1, 4>},
                                                     {few<8, 2, 1>, few<8, 2, 2>, few<8, 2, 3>, few<8, 2, 4>}};
    const std::size_t form = RowShape(matrix).step / 2;  // 0, 1, 2 for 1, 2, 4 blocks of a chunk
    (matrix.bits == 8 ? kFew8 : kFew4)[form][rows.count() - 1](matrix, rows, bias, first, last, y);
}

bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vnni");
}

}  // namespace qwenvl::vnni

namespace qwenvl {

const MultiplyKernels kAvx512VnniKernels{"avx512-vnni", vnni::supported, vnni::round_row, vnni::multiply_few,
                                         vnni::multiply_panel};

}  // namespace qwenvl

#endif
