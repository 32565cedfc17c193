#include "attention/patch_tiles.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention/attention_rows.hpp"
#include "matmul/block_matmul.hpp"
#if defined(QWENVL_HAS_AMX)
#include "matmul/block_vnni.hpp"
#endif

namespace qwenvl::patch_tiles {

#if !defined(QWENVL_HAS_AMX)

bool supported() { return false; }
void prepare(const PatchCall&, std::size_t, const std::uint32_t*, std::size_t, const Prepared&) {}
void attend(const PatchCall&, std::size_t, const std::uint32_t*, std::size_t, const Prepared&, std::size_t) {}

#else

#define QWENVL_LANES __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16")))
#define QWENVL_TILES \
    __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,amx-tile,amx-bf16")))

namespace {

constexpr std::size_t kKeys = 256;  // whose scores are computed together
constexpr std::size_t kMostDims = 256;
constexpr std::size_t kAhead = 8;  // rows that are fetched before they are used
constexpr int kTileBytes = 64;  // of a row of a tile
constexpr float kLog2E = 1.44269504f;

struct Workspace {
    AlignedVector<float> scores;           // [key, kQueries]
    AlignedVector<std::uint16_t> weights;  // [32 keys, 16 queries, pair of keys, query, 2]
    AlignedVector<float> totals;           // [tile of values, 16 queries, dimension, query]
};

QWENVL_LANES inline __m512i narrow(__m512 low, __m512 high) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

QWENVL_LANES inline __m512 widened_low(__m512i halves) {
    return _mm512_castsi512_ps(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(halves)) << 16);
}

QWENVL_LANES inline __m512 widened_high(__m512i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(halves, 1)), 16));
}

// Rows lie too far apart for the processor to fetch them by itself.
inline void fetch(const float* x, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 16) __builtin_prefetch(x + i);
}

// Rotates one head of a row into `dims` numbers, zeros after the head's own.
void rotated(const PatchCall& call, const float* x, std::size_t row, float scale, std::size_t dims, float* out) {
    const std::size_t half = call.dim / 2, at = row % call.patches * half;
    if (call.cos != nullptr) {
        rotate_head(x, call.cos + at, call.sin + at, half, scale, out);
    } else {
        for (std::size_t i = 0; i < call.dim; ++i) out[i] = x[i] * scale;
    }
    std::fill(out + call.dim, out + dims, 0.0f);
}

// Rounds 32 numbers to bfloat16 and stores them as term 0. Where kTerms is 3, terms 1 and 2 are chosen so that the
// products of a key's and a query's terms are high * high, high * low and low * high; low is what rounding left.
template <typename Store>
QWENVL_LANES inline void store_terms(const float* x, bool is_key, Store store) {
    const __m512 first = _mm512_load_ps(x), second = _mm512_load_ps(x + 16);
    const __m512i high = narrow(first, second);
    store(0, high);
    if constexpr (kTerms == 3) {
        const __m512i low = narrow(_mm512_sub_ps(first, widened_low(high)), _mm512_sub_ps(second, widened_high(high)));
        store(1, is_key ? high : low);
        store(2, is_key ? low : high);
    }
}

// 2^x of numbers up to zero, to five digits, which are more than a bfloat16 has. Below -126 it is 2^-126.
QWENVL_LANES inline __m512 power_of_two(__m512 x) {
    const __m512 round = _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);     // NaN stays: MAXPS returns its second operand then
    const __m512 shifted = _mm512_add_ps(x, round);
    const __m512 part = _mm512_sub_ps(x, _mm512_sub_ps(shifted, round));
    __m512 p = _mm512_set1_ps(0.00957009941f);
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(0.0559178591f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(0.240247443f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(0.693121791f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(0.999999285f));
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

// Writes one head of up to 32 rows as tiles of 16 rows and 32 dimensions.
QWENVL_LANES void store_rows(const PatchCall& call, std::size_t offset, const std::uint32_t* rows, std::size_t count,
                             const Layout& layout, bool are_keys, std::uint16_t* out) {
    alignas(64) float x[kMostDims + kTileDims];
    const float scale = are_keys ? 1.0f : kLog2E / std::sqrt(static_cast<float>(call.dim));
    std::memset(out, 0, layout.key_numbers() * sizeof *out);
    const auto from = [&](std::size_t r) { return call.qkv + rows[r] * 3 * call.width() + offset; };
    for (std::size_t r = 0; r < count; ++r) {
        if (r + kAhead < count) fetch(from(r + kAhead), call.dim);
        rotated(call, from(r), rows[r], scale, layout.chunks * kTileDims, x);
        std::uint16_t* const to = out + r / kTile * layout.key_tiles * kTileNumbers + r % kTile * kTileDims;
        for (std::size_t c = 0; c < layout.chunks; ++c) {
            store_terms(x + c * kTileDims, are_keys, [&](std::size_t term, __m512i numbers) QWENVL_LANES {
                _mm512_store_si512(to + (term * layout.chunks + c) * kTileNumbers, numbers);
            });
        }
    }
}

// Transposes tiles of queries to pairs of dimensions, with a query per pair of lanes.
QWENVL_LANES void transpose_queries(const Layout& layout, std::uint16_t* queries) {
    for (std::size_t t = 0; t < 2 * layout.key_tiles; ++t) {
        __m512i lanes[kTile];
        std::uint16_t* const tile = queries + t * kTileNumbers;
        for (std::size_t i = 0; i < kTile; ++i) lanes[i] = _mm512_load_si512(tile + i * kTileDims);
        vnni::transpose(lanes);
        for (std::size_t i = 0; i < kTile; ++i) _mm512_store_si512(tile + i * kTileDims, lanes[i]);
    }
}

// Scores [key, 32 queries] of `tiles` tiles of 16 keys, an even number.
QWENVL_TILES void score(const Layout& layout, const std::uint16_t* keys, const std::uint16_t* queries,
                        std::size_t tiles, float* scores) {
    const std::size_t step = layout.key_tiles * kTileNumbers;
    for (std::size_t t = 0; t < tiles; t += 2) {
        const std::uint16_t* const from = keys + t * step;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (std::size_t c = 0; c < layout.key_tiles; ++c) {
            _tile_loadd(4, from + c * kTileNumbers, kTileBytes);
            _tile_loadd(6, queries + c * kTileNumbers, kTileBytes);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, queries + step + c * kTileNumbers, kTileBytes);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, from + step + c * kTileNumbers, kTileBytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        float* const to = scores + t * kTile * kQueries;
        constexpr int kStride = kQueries * sizeof(float);
        _tile_stored(0, to, kStride);
        _tile_stored(1, to + kTile, kStride);
        _tile_stored(2, to + kTile * kQueries, kStride);
        _tile_stored(3, to + kTile * kQueries + kTile, kStride);
    }
}

// The softmax of 32 queries so far.
struct Lanes {
    __m512 most[2], sum[2];
};

// The largest of the scores of `count` keys and of what was found before.
QWENVL_LANES inline __m512 largest(const float* scores, std::size_t count, __m512 most) {
    __m512 of[4] = {most, most, most, most};
    std::size_t key = 0;
    for (; key + 4 <= count; key += 4) {
        for (std::size_t i = 0; i < 4; ++i) of[i] = _mm512_max_ps(_mm512_load_ps(scores + (key + i) * kQueries), of[i]);
    }
    for (; key < count; ++key) of[0] = _mm512_max_ps(_mm512_load_ps(scores + key * kQueries), of[0]);
    return _mm512_max_ps(_mm512_max_ps(of[0], of[1]), _mm512_max_ps(of[2], of[3]));
}

// Writes the weights of two keys as pairs, a query per pair of lanes. A chunk of 32 keys has a tile per 16 queries.
QWENVL_LANES inline void store_pair(__m512 even, __m512 odd, std::size_t key, std::size_t tile,
                                    std::uint16_t* weights) {
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    std::uint16_t* const to = weights + (key / kKeyChunk * 2 + tile) * kTileNumbers + key % kKeyChunk * kTile;
    _mm512_store_si512(to, _mm512_permutexvar_epi16(pairs, narrow(even, odd)));
}

// Turns scores of `count` keys into weights in bfloat16, and zeros up to `padded` keys; `kept` become the factors of
// what the queries had before.
QWENVL_LANES void weigh(const float* scores, std::size_t count, std::size_t padded, Lanes& lanes, __m512 (&kept)[2],
                        std::uint16_t* weights) {
    __m512 most[2], sums[2][2];
    for (std::size_t t = 0; t < 2; ++t) {
        most[t] = largest(scores + t * kTile, count, lanes.most[t]);
        kept[t] = power_of_two(_mm512_sub_ps(lanes.most[t], most[t]));
        sums[t][0] = _mm512_mul_ps(lanes.sum[t], kept[t]);
        sums[t][1] = _mm512_setzero_ps();
        lanes.most[t] = most[t];
    }
    std::size_t key = 0;
    for (; key + 2 <= count; key += 2) {
        for (std::size_t t = 0; t < 2; ++t) {
            const float* const from = scores + key * kQueries + t * kTile;
            const __m512 even = power_of_two(_mm512_sub_ps(_mm512_load_ps(from), most[t]));
            const __m512 odd = power_of_two(_mm512_sub_ps(_mm512_load_ps(from + kQueries), most[t]));
            sums[t][0] = _mm512_add_ps(sums[t][0], even);
            sums[t][1] = _mm512_add_ps(sums[t][1], odd);
            store_pair(even, odd, key, t, weights);
        }
    }
    for (; key < padded; key += 2) {
        for (std::size_t t = 0; t < 2; ++t) {
            __m512 last = _mm512_setzero_ps();
            if (key < count) {
                last = power_of_two(_mm512_sub_ps(_mm512_load_ps(scores + key * kQueries + t * kTile), most[t]));
                sums[t][0] = _mm512_add_ps(sums[t][0], last);
            }
            store_pair(last, _mm512_setzero_ps(), key, t, weights);
        }
    }
    for (std::size_t t = 0; t < 2; ++t) lanes.sum[t] = _mm512_add_ps(sums[t][0], sums[t][1]);
}

QWENVL_LANES void scale_totals(const Layout& layout, std::size_t tile, __m512 factor, float* totals) {
    if (_mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ) == 0) return;
    for (std::size_t t = 0; t < layout.value_tiles; ++t) {
        float* const at = totals + (2 * t + tile) * kTile * kTile;
        for (std::size_t i = 0; i < kTile; ++i) {
            _mm512_store_ps(at + i * kTile, _mm512_mul_ps(_mm512_load_ps(at + i * kTile), factor));
        }
    }
}

// Adds the values of `chunks` chunks of 32 keys to the totals.
QWENVL_TILES void add_values_of(const Layout& layout, const std::uint16_t* values, const std::uint16_t* weights,
                                std::size_t chunks, float* totals) {
    constexpr std::size_t kTotal = kTile * kTile;
    for (std::size_t t = 0; t < layout.value_tiles; t += 2) {
        float* const to = totals + 2 * t * kTotal;
        const bool two = t + 1 < layout.value_tiles;
        _tile_loadd(0, to, kTileBytes);
        _tile_loadd(1, to + kTotal, kTileBytes);
        if (two) {
            _tile_loadd(2, to + 2 * kTotal, kTileBytes);
            _tile_loadd(3, to + 3 * kTotal, kTileBytes);
        }
        for (std::size_t c = 0; c < chunks; ++c) {
            const std::uint16_t* const from = values + (c * layout.value_tiles + t) * kTileNumbers;
            _tile_loadd(4, from, kTileBytes);
            _tile_loadd(6, weights + 2 * c * kTileNumbers, kTileBytes);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, weights + (2 * c + 1) * kTileNumbers, kTileBytes);
            _tile_dpbf16ps(1, 4, 7);
            if (two) {
                _tile_loadd(5, from + kTileNumbers, kTileBytes);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, to, kTileBytes);
        _tile_stored(1, to + kTotal, kTileBytes);
        if (two) {
            _tile_stored(2, to + 2 * kTotal, kTileBytes);
            _tile_stored(3, to + 3 * kTotal, kTileBytes);
        }
    }
}

// Divides totals [dimension, query] by the sums and writes them query by query.
QWENVL_LANES void write(const PatchCall& call, std::size_t head, const std::uint32_t* rows, std::size_t count,
                        const Layout& layout, std::size_t tile, __m512 sum, const float* totals) {
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), sum);
    for (std::size_t t = 0; t < layout.value_tiles; ++t) {
        __m512i lanes[kTile];
        const float* const at = totals + (2 * t + tile) * kTile * kTile;
        for (std::size_t i = 0; i < kTile; ++i) {
            lanes[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(at + i * kTile), inverse));
        }
        vnni::transpose(lanes);
        const auto there = static_cast<__mmask16>((1u << std::min(call.dim - t * kTile, kTile)) - 1);
        for (std::size_t q = 0; q < count; ++q) {
            float* const to = call.out + rows[q] * call.width() + head * call.dim + t * kTile;
            _mm512_mask_storeu_ps(to, there, _mm512_castsi512_ps(lanes[q]));
        }
    }
}

}  // namespace

bool supported() { return amx::has_tiles() && multiply_variant() == "amx-int8"; }

QWENVL_LANES void prepare(const PatchCall& call, std::size_t head, const std::uint32_t* rows, std::size_t count,
                          const Prepared& out) {
    const Layout layout(call.dim);
    const std::size_t width = call.width();
    const std::size_t start = head * call.dim;
    for (std::size_t r = 0; r < std::min(count, kAhead); ++r) {
        fetch(call.qkv + rows[r] * 3 * width + width + start, call.dim);
    }
    store_rows(call, start, rows, count, layout, false, out.queries);
    for (std::size_t r = 0; r < count; ++r) fetch(call.qkv + rows[r] * 3 * width + 2 * width + start, call.dim);
    store_rows(call, width + start, rows, count, layout, true, out.keys);
    transpose_queries(layout, out.queries);
    for (std::size_t t = 0; t < layout.value_tiles; ++t) {
        const auto there = static_cast<__mmask16>((1u << std::min(call.dim - t * kTile, kTile)) - 1);
        __m512i both[2][kTile];
        for (std::size_t k = 0; k < kKeyChunk; ++k) {
            const float* const from =
                call.qkv + rows[std::min(k, count - 1)] * 3 * width + 2 * width + start + t * kTile;
            both[k / kTile][k % kTile] =
                k < count ? _mm512_castps_si512(_mm512_maskz_loadu_ps(there, from)) : _mm512_setzero_si512();
        }
        vnni::transpose(both[0]);
        vnni::transpose(both[1]);
        for (std::size_t i = 0; i < kTile; ++i) {
            const __m512i numbers = narrow(_mm512_castsi512_ps(both[0][i]), _mm512_castsi512_ps(both[1][i]));
            _mm512_store_si512(out.values + t * kTileNumbers + i * kTileDims, numbers);
        }
    }
}

QWENVL_TILES void attend(const PatchCall& call, std::size_t head, const std::uint32_t* rows, std::size_t row_count,
                         const Prepared& given, std::size_t count) {
    thread_local Workspace work;
    const Layout layout(call.dim);
    work.scores.resize(kKeys * kQueries);
    work.weights.resize(kKeys * kQueries);
    work.totals.resize(2 * layout.value_tiles * kTile * kTile);
    float *const scores = work.scores.data(), *const totals = work.totals.data();
    std::uint16_t* const weights = work.weights.data();
    std::fill(work.totals.begin(), work.totals.end(), 0.0f);
    const __m512 least = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    Lanes lanes{{least, least}, {_mm512_setzero_ps(), _mm512_setzero_ps()}};
    __asm__ volatile("" ::: "memory");  // the compiler does not know that tiles are loaded from memory
    _tile_loadconfig(&amx::kEightTiles);
    for (std::size_t at = 0; at < count; at += kKeys) {
        const std::size_t here = std::min(count - at, kKeys), chunks = (here + kKeyChunk - 1) / kKeyChunk;
        score(layout, given.keys + at / kKeyChunk * layout.key_numbers(), given.queries, 2 * chunks, scores);
        __asm__ volatile("" ::: "memory");
        __m512 kept[2];
        weigh(scores, here, chunks * kKeyChunk, lanes, kept, weights);
        for (std::size_t i = 0; i < 2; ++i) scale_totals(layout, i, kept[i], totals);
        __asm__ volatile("" ::: "memory");
        add_values_of(layout, given.values + at / kKeyChunk * layout.value_numbers(), weights, chunks, totals);
        __asm__ volatile("" ::: "memory");
    }
    _tile_release();
    const std::size_t first = std::min(row_count, kTile);
    write(call, head, rows, first, layout, 0, lanes.sum[0], totals);
    write(call, head, rows + kTile, row_count - first, layout, 1, lanes.sum[1], totals);
}

#endif

}  // namespace qwenvl::patch_tiles
