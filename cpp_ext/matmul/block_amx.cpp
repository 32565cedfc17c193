// Products of many rows in AMX's tiles: one instruction sums 16 x 16 x 64 products of bytes. Fewer rows are those of
// AVX-512 VNNI.
//
// A tile of activations holds 16 rows, and a tile of weights 16 outputs, as signed integers. So a block's sum is the
// same integer as everywhere, and its float is added in the same order.
//
// While tiles are in use, a core has one unit for floats of 512 bits instead of two, so the float operations bound the
// speed: see Sums.
#include "matmul/block_kernels.hpp"

#if defined(QWENVL_HAS_AMX)

#include "matmul/amx.hpp"
#include "matmul/block_amx_weights.hpp"

#define QWENVL_AMX __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni,amx-tile,amx-int8,prfchw")))

namespace qwenvl::amx {
namespace {

constexpr std::size_t kTileBytes = kTile * kPieceBytes;
constexpr std::size_t kSection = 1024;  // inputs that are multiplied before others: their tiles stay in the caches
constexpr std::size_t kRing = 4;        // blocks whose sums are in memory

bool supported() { return has_tiles() && vnni::supported(); }

// Tiles 0 and 1 hold sums, 2 and 4 activations, 3 and 5 weights, of `inputs` inputs.
constexpr TileConfig config_of(std::uint8_t inputs) {
    const auto rows = static_cast<std::uint8_t>(inputs / kGroupBytes);
    return {1, 0, {}, {64, 64, inputs, 64, inputs, 64}, {16, 16, 16, rows, 16, rows}};
}
constexpr TileConfig kWholePieces = config_of(64), kHalfPieces = config_of(32);

std::size_t row_bytes(const BlockMatrix& matrix) {
    return (matrix.inputs + kPieceBytes - 1) / kPieceBytes * kPieceBytes;
}

// Weights of 4 bits are taken from their bytes as four even ones, then four odd ones; so activations lie the same way.
QWENVL_VNNI void round_row(const BlockMatrix& matrix, const float* values, std::size_t lane, std::int8_t* tile,
                           float* scales) {
    const __m128i order = matrix.bits == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                                           : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto put = [&](std::size_t i, __m512i found) QWENVL_VNNI {
        std::int8_t* const to = tile + i / kPieceBytes * kTileBytes + lane * kPieceBytes + i % kPieceBytes;
        const __m128i bytes = _mm_shuffle_epi8(_mm512_cvtsepi32_epi8(found), order);
        _mm_store_si128(reinterpret_cast<__m128i*>(to), bytes);
    };
    vnni::round_blocks(matrix, values, put, scales + lane, kTile);
}

// The part of a product that one tile of outputs and one tile of rows have.
struct Pair {
    const std::int8_t *weights, *values;
    const float *weight_scales, *scales;
    float* kept;  // totals [row, output]
    std::size_t row, output;
};

using Totals = __m512[kTile];  // a vector of outputs per row

// Makes the sums of a block in tile kAt, 0 or 1.
template <int kAt>
QWENVL_AMX inline void sum_block(const Pair& pair, std::size_t block, std::size_t b) {
    if constexpr (kAt == 0) {
        _tile_zero(0);
    } else {
        _tile_zero(1);
    }
    for (std::size_t at = b * block; at < (b + 1) * block; at += kPieceBytes) {
        const std::int8_t* const values = pair.values + at / kPieceBytes * kTileBytes + at % kPieceBytes;
        if constexpr (kAt == 0) {
            _tile_loadd(2, values, kPieceBytes);
            _tile_loadd(3, pair.weights + at * kTile, kPieceBytes);
            _tile_dpbssd(0, 2, 3);
        } else {
            _tile_loadd(4, values, kPieceBytes);
            _tile_loadd(5, pair.weights + at * kTile, kPieceBytes);
            _tile_dpbssd(1, 4, 5);
        }
    }
    __asm__ volatile("" ::: "memory");
}

// Sums of blocks on their way from the tiles to the totals. If scales are short, a sum needs two operations of floats
// instead of three: an integer s below 2^22 plus the bits of m = 3 * 2^22 is the float m + s, and m times the scale is
// exact, so (m + s) * scale - m * scale, which is rounded once, is s * scale.
template <bool kShort>
class Sums {
public:
    template <int kAt>
    QWENVL_AMX inline void store(std::size_t b) {
        if constexpr (kAt == 0) {
            _tile_stored(0, of(b), kTile * sizeof(std::int32_t));
        } else {
            _tile_stored(1, of(b), kTile * sizeof(std::int32_t));
        }
        __asm__ volatile("" ::: "memory");
    }

    QWENVL_AMX inline __attribute__((always_inline)) void add(const Pair& pair, std::size_t b, Totals& totals) {
        const std::int32_t* const sums = of(b);
        const float* const scales = pair.scales + b * kTile;
        const __m512 weight_scales = _mm512_load_ps(pair.weight_scales + b * kTile), m = _mm512_set1_ps(3 << 22);
        const __m512 excess = _mm512_mul_ps(m, weight_scales);
        QWENVL_UNROLL
        for (std::size_t i = 0; i < kTile; ++i) {
            const __m512i sum = _mm512_load_si512(sums + i * kTile);
            const __m512 above = _mm512_castsi512_ps(_mm512_add_epi32(sum, _mm512_castps_si512(m)));
            const __m512 found = kShort ? _mm512_fmsub_ps(above, weight_scales, excess)
                                        : _mm512_mul_ps(_mm512_cvtepi32_ps(sum), weight_scales);
            totals[i] = _mm512_fmadd_ps(found, _mm512_set1_ps(scales[i]), totals[i]);
        }
        __asm__ volatile("" ::: "memory");
    }

private:
    std::int32_t* of(std::size_t b) { return sums_[b % kRing]; }

    alignas(64) std::int32_t sums_[kRing][kTile * kTile];
};

// The blocks from `first` to before `last` of several pairs. The sums of a block are made in tiles while those of the
// last but one are added; pairs follow each other without a pause.
template <bool kShort>
class Section {
public:
    Section(const BlockMatrix& matrix, const float* bias, std::size_t first, std::size_t last)
        : matrix_(matrix), bias_(bias), first_(first), last_(last) {}

    template <typename PairOf>
    QWENVL_AMX void run(std::size_t count, PairOf pair_of, std::size_t rows, std::size_t end, float* y) {
        const std::size_t block = matrix_.block;
        const auto finish = [&](const Pair& pair, Totals& totals) QWENVL_AMX __attribute__((always_inline)) {
            if (last_ - first_ > 1) sums_.add(pair, last_ - 2, totals);
            sums_.add(pair, last_ - 1, totals);
            if (last_ < matrix_.blocks()) return keep(pair, totals);
            write(pair, totals, rows, end, y);
        };
        Totals totals;
        Pair pair{}, next = pair_of(0);
        for (std::size_t i = 0; i < count; ++i) {
            if (i > 0) store_last();
            sum_block<0>(next, block, first_);
            if (i > 0) finish(pair, totals);
            pair = next;
            next = pair_of(std::min(i + 1, count - 1));
            look_ahead(next, rows, y);
            begin(pair, totals);
            if (last_ - first_ < 2) continue;
            sum_block<1>(pair, block, first_ + 1);
            sums_.template store<0>(first_);
            std::size_t b = first_ + 2;
            for (; b + 1 < last_; b += 2) {
                step<0>(pair, b, totals);
                step<1>(pair, b + 1, totals);
            }
            if (b < last_) step<0>(pair, b, totals);
        }
        store_last();
        finish(pair, totals);
    }

private:
    template <int kAt>
    QWENVL_AMX inline __attribute__((always_inline)) void step(const Pair& pair, std::size_t b, Totals& totals) {
        sum_block<kAt>(pair, matrix_.block, b);
        sums_.add(pair, b - 2, totals);
        fetch_some();
        sums_.template store<1 - kAt>(b - 1);
    }

    QWENVL_AMX inline void store_last() {
        if ((last_ - first_) % 2 == 0) {
            sums_.template store<1>(last_ - 1);
        } else {
            sums_.template store<0>(last_ - 1);
        }
    }

    QWENVL_AMX inline void begin(const Pair& pair, Totals& totals) const {
        QWENVL_UNROLL
        for (std::size_t i = 0; i < kTile; ++i) {
            totals[i] = first_ == 0 ? _mm512_setzero_ps() : _mm512_load_ps(pair.kept + i * kTile);
        }
    }

    // Writes that miss the cache hold up the sums that are stored after them, so the lines that the next pair writes
    // are fetched before it begins.
    void look_ahead(const Pair& next, std::size_t rows, float* y) {
        const bool is_end = last_ == matrix_.blocks();
        ahead_ = is_end ? y + next.row * matrix_.outputs + next.output : next.kept;
        stride_ = is_end ? matrix_.outputs : kTile;
        end_ahead_ = ahead_ + std::min(kTile, rows - next.row) * stride_;
    }

    QWENVL_AMX inline void fetch_some() {
        for (std::size_t i = 0; i < lines_ && ahead_ != end_ahead_; ++i, ahead_ += stride_)
            __builtin_prefetch(ahead_, 1, 3);
    }

    QWENVL_AMX static inline void keep(const Pair& pair, const Totals& totals) {
        QWENVL_UNROLL
        for (std::size_t i = 0; i < kTile; ++i) _mm512_store_ps(pair.kept + i * kTile, totals[i]);
    }

    // Writes up to 16 outputs, before `end`, of up to 16 of `rows` rows.
    QWENVL_AMX inline void write(const Pair& pair, const Totals& totals, std::size_t rows, std::size_t end,
                                 float* y) const {
        const auto there = static_cast<__mmask16>((1u << std::min(kTile, end - pair.output)) - 1);
        const __m512 offset = bias_ ? _mm512_maskz_loadu_ps(there, bias_ + pair.output) : _mm512_setzero_ps();
        float* const to = y + pair.row * matrix_.outputs + pair.output;
        QWENVL_UNROLL
        for (std::size_t i = 0; i < kTile; ++i) {
            if (pair.row + i >= rows) break;
            _mm512_mask_storeu_ps(to + i * matrix_.outputs, there, _mm512_add_ps(totals[i], offset));
        }
    }

    const BlockMatrix& matrix_;
    const float* bias_;
    std::size_t first_, last_;
    std::size_t lines_ = (kTile + last_ - first_ - 1) / (last_ - first_);  // that are fetched per block
    float *ahead_ = nullptr, *end_ahead_ = nullptr;
    std::size_t stride_ = 0;
    Sums<kShort> sums_;
};

template <bool kShort>
QWENVL_AMX void all_rows(const BlockMatrix& matrix, const RoundedRows& rows, const Weights& weights, const float* bias,
                         std::size_t first, std::size_t last, float* y) {
    thread_local AlignedVector<float> kept;
    const std::size_t blocks = matrix.blocks(), sections = (matrix.inputs + kSection - 1) / kSection;
    const std::size_t together = (blocks + sections - 1) / sections;
    const std::size_t tiles = weights.tiles(), count = (rows.count() + kTile - 1) / kTile * tiles;
    kept.resize(count * kTile * kTile);
    float* const all_kept = kept.data();
    const auto pair_of = [&](std::size_t i) {
        const std::size_t row = i / tiles * kTile, tile = i % tiles;
        return Pair{weights.bytes(tile),          rows.values(row),
                    weights.scales(tile),         rows.scales(row),
                    all_kept + i * kTile * kTile, row,
                    first + tile * kTile};
    };
    __asm__ volatile("" ::: "memory");  // the compiler does not know that tiles are loaded from memory
    _tile_loadconfig(matrix.block < kPieceBytes ? &kHalfPieces : &kWholePieces);
    for (std::size_t b = 0; b < blocks; b += together) {
        Section<kShort> section(matrix, bias, b, std::min(b + together, blocks));
        section.run(count, pair_of, rows.count(), last, y);
    }
    _tile_release();
}

void multiply(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
              std::size_t last, float* y) {
    thread_local Weights weights;
    if (matrix.bits == 4) {
        weights.fill<4>(matrix, first, last);
    } else {
        weights.fill<8>(matrix, first, last);
    }
    const auto largest = matrix.block * static_cast<std::size_t>(matrix.zero()) * 127;  // of a block's sums
    const bool is_short = weights.are_short() && largest < std::size_t{1} << 22;
    (is_short ? all_rows<true> : all_rows<false>)(matrix, rows, weights, bias, first, last, y);
}

constexpr TileKernels kTiles{8, row_bytes, round_row, multiply};

}  // namespace
}  // namespace qwenvl::amx

namespace qwenvl {

const MultiplyKernels kAmxKernels{"amx-int8",         amx::supported,       vnni::round_row,
                                  vnni::multiply_few, vnni::multiply_panel, &amx::kTiles};

}  // namespace qwenvl

#endif
