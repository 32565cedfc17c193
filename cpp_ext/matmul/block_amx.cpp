// Products of many rows in AMX's tiles: one instruction sums 16 x 16 x 64 products of bytes. Fewer rows are those of
// AVX-512 VNNI.
//
// A tile of weights holds 16 outputs, as signed integers in the order of the inputs, and a tile of activations 16 rows.
// So a block's sum is the same integer as everywhere, and its float is added in the same order.
#include "matmul/block_kernels.hpp"

#if defined(QWENVL_HAS_AMX)

#include "matmul/amx.hpp"
#include "matmul/block_vnni.hpp"

#define QWENVL_AMX __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni,amx-tile,amx-int8")))

namespace qwenvl::amx {
namespace {

constexpr std::size_t kTile = kTileRows, kPiece = kTileInputs;  // outputs or rows of a tile, and its inputs
constexpr std::size_t kTileBytes = kTile * kPiece;
constexpr std::size_t kOutputTiles = kTileOutputs / kTile;  // of a task
constexpr std::size_t kSection = 1024;  // inputs that are multiplied before others: their tiles stay in the caches

bool supported() { return has_tiles() && vnni::supported(); }

// Tile 0 holds sums, 1 weights, 2 activations, of `inputs` inputs.
constexpr TileConfig config_of(std::uint8_t inputs) {
    return {1, 0, {}, {64, inputs, 64}, {16, 16, static_cast<std::uint8_t>(inputs / 4)}};
}
constexpr TileConfig kWholePieces = config_of(64), kHalfPieces = config_of(32);

void round_row(const BlockMatrix& matrix, const float* values, std::size_t lane, std::int8_t* tile, float* scales) {
    std::int8_t* const row = tile + lane * kPiece;
    const auto place = [&](std::size_t i) { return row + i / kPiece * kTileBytes + i % kPiece; };
    if (matrix.inputs % kPiece != 0) std::memset(place(matrix.inputs), 0, kPiece / 2);
    vnni::round_blocks(matrix, values, place, scales + lane, kTile);
}

QWENVL_VNNI void transpose_tile(const BlockMatrix& matrix, std::int8_t* tile) {
    for (std::size_t at = 0; at < matrix.inputs; at += kPiece) {
        std::int8_t* const piece = tile + at / kPiece * kTileBytes;
        __m512i rows[16];
        for (std::size_t i = 0; i < kTile; ++i) rows[i] = _mm512_load_si512(piece + i * kPiece);
        vnni::transpose(rows);
        for (std::size_t i = 0; i < kTile; ++i) _mm512_store_si512(piece + i * kPiece, rows[i]);
    }
}

// The weights of a task as signed integers by tile, 64 inputs and output; their scales by tile, block and output.
class Weights {
public:
    template <int kBits>
    QWENVL_VNNI void fill(const BlockMatrix& matrix, std::size_t first, std::size_t last) {
        tile_bytes_ = (matrix.inputs + kPiece - 1) / kPiece * kTileBytes;
        blocks_ = matrix.blocks();
        tiles_ = (last - first + kTile - 1) / kTile;
        bytes_.resize(tiles_ * tile_bytes_);
        scales_.resize(tiles_ * blocks_ * kTile);
        for (std::size_t i = 0; i < tiles_ * kTile; ++i) {
            const std::size_t output = std::min(first + i, last - 1);
            const std::uint8_t* const from = matrix.packed + output * matrix.row_bytes();
            std::int8_t* const to = bytes_.data() + i / kTile * tile_bytes_ + i % kTile * kPiece;
            const std::size_t whole = matrix.inputs / kPiece;
            for (std::size_t p = 0; p < whole; ++p) unpack<kBits>(from + p * kPiece * kBits / 8, to + p * kTileBytes);
            if (matrix.inputs % kPiece != 0) {
                std::uint8_t last_piece[kPiece * kBits / 8] = {};
                std::memcpy(last_piece, from + whole * sizeof last_piece, sizeof last_piece / 2);
                unpack<kBits>(last_piece, to + whole * kTileBytes);
            }
            float* const scales = scales_.data() + i / kTile * blocks_ * kTile + i % kTile;
            for (std::size_t b = 0; b < blocks_; ++b) scales[b * kTile] = matrix.scales[output * blocks_ + b];
        }
    }

    std::size_t tiles() const { return tiles_; }
    const std::int8_t* bytes(std::size_t tile) const { return bytes_.data() + tile * tile_bytes_; }
    const float* scales(std::size_t tile) const { return scales_.data() + tile * blocks_ * kTile; }

private:
    template <int kBits>
    QWENVL_VNNI static void unpack(const std::uint8_t* from, std::int8_t* to) {
        if constexpr (kBits == 8) {
            const __m512i top = _mm512_set1_epi8(static_cast<char>(0x80));
            _mm512_store_si512(to, _mm512_xor_si512(_mm512_loadu_si512(from), top));
        } else {
            const __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
            const __m512i both = _mm512_or_si512(bytes, _mm512_slli_epi16(bytes, 4));
            _mm512_store_si512(to, _mm512_sub_epi8(vnni::low_halves(both), _mm512_set1_epi8(8)));
        }
    }

    std::size_t tiles_ = 0, tile_bytes_ = 0, blocks_ = 0;
    AlignedVector<std::int8_t> bytes_;
    AlignedVector<float> scales_;
};

// The part of a product that one tile of outputs and one tile of rows have.
struct Pair {
    const std::int8_t *weights, *values;
    const float *weight_scales, *scales;
};

// Makes the sums of a block in tile 0.
QWENVL_AMX inline void sum_block(const Pair& pair, std::size_t block, std::size_t b) {
    _tile_zero(0);
    for (std::size_t at = b * block; at < (b + 1) * block; at += kPiece) {
        const std::size_t piece = at / kPiece * kTileBytes, part = at % kPiece;
        _tile_loadd(1, pair.weights + piece + part, kPiece);
        _tile_loadd(2, pair.values + piece + part * kTile, kPiece);
        _tile_dpbssd(0, 1, 2);
    }
}

// Adds a block's sums to the totals, which have a vector of rows per output.
QWENVL_AMX inline void add_block(const Pair& pair, std::size_t b, const std::int32_t* sums, __m512 (&totals)[kTile]) {
    const __m512 scales = _mm512_load_ps(pair.scales + b * kTile);
    const float* const weight_scales = pair.weight_scales + b * kTile;
    QWENVL_UNROLL
    for (std::size_t i = 0; i < kTile; ++i) {
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + i * kTile));
        totals[i] = _mm512_fmadd_ps(_mm512_mul_ps(sum, _mm512_set1_ps(weight_scales[i])), scales, totals[i]);
    }
}

// Adds the blocks from `first` to before `last` to kept totals [output, row].
QWENVL_AMX void add_blocks(const Pair& pair, std::size_t block, std::size_t first, std::size_t last, float* kept) {
    alignas(64) std::int32_t sums[kTile * kTile];
    __m512 totals[kTile];
    QWENVL_UNROLL
    for (std::size_t i = 0; i < kTile; ++i)
        totals[i] = first == 0 ? _mm512_setzero_ps() : _mm512_load_ps(kept + i * kTile);
    sum_block(pair, block, first);
    for (std::size_t b = first; b < last; ++b) {
        _tile_stored(0, sums, kTile * sizeof *sums);
        if (b + 1 < last) sum_block(pair, block, b + 1);  // while this block's sums are added
        add_block(pair, b, sums, totals);
    }
    QWENVL_UNROLL
    for (std::size_t i = 0; i < kTile; ++i) _mm512_store_ps(kept + i * kTile, totals[i]);
}

// Writes `outputs` columns of up to 16 rows from totals [output, row].
QWENVL_VNNI void write(const float* kept, const float* bias, std::size_t outputs, std::size_t rows, std::size_t stride,
                       float* y) {
    __m512i lanes[kTile];
    for (std::size_t i = 0; i < kTile; ++i) lanes[i] = _mm512_load_si512(kept + i * kTile);
    vnni::transpose(lanes);
    const auto there = static_cast<__mmask16>((1u << outputs) - 1);
    const __m512 offset = bias ? _mm512_maskz_loadu_ps(there, bias) : _mm512_setzero_ps();
    for (std::size_t m = 0; m < rows; ++m) {
        _mm512_mask_storeu_ps(y + m * stride, there, _mm512_add_ps(_mm512_castsi512_ps(lanes[m]), offset));
    }
}

template <int kBits>
QWENVL_AMX void all_rows(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
                         std::size_t last, float* y) {
    thread_local Weights weights;
    thread_local AlignedVector<float> kept;
    weights.fill<kBits>(matrix, first, last);
    const std::size_t blocks = matrix.blocks(), together = std::max<std::size_t>(kSection / matrix.block, 1);
    const std::size_t row_tiles = (rows.count() + kTile - 1) / kTile;
    kept.resize(row_tiles * weights.tiles() * kTile * kTile);
    __asm__ volatile("" ::: "memory");  // the compiler does not know that tiles are loaded from memory
    _tile_loadconfig(matrix.block < kPiece ? &kHalfPieces : &kWholePieces);
    for (std::size_t b = 0; b < blocks; b += together) {
        for (std::size_t t = 0; t < row_tiles; ++t) {
            for (std::size_t i = 0; i < weights.tiles(); ++i) {
                const Pair pair{weights.bytes(i), rows.values(t * kTile), weights.scales(i), rows.scales(t * kTile)};
                float* const to = kept.data() + (t * weights.tiles() + i) * kTile * kTile;
                add_blocks(pair, matrix.block, b, std::min(b + together, blocks), to);
            }
        }
    }
    _tile_release();
    for (std::size_t t = 0; t < row_tiles; ++t) {
        for (std::size_t i = 0; i < weights.tiles(); ++i) {
            const std::size_t output = first + i * kTile, row = t * kTile;
            write(kept.data() + (t * weights.tiles() + i) * kTile * kTile, bias ? bias + output : nullptr,
                  std::min(kTile, last - output), std::min(kTile, rows.count() - row), matrix.outputs,
                  y + row * matrix.outputs + output);
        }
    }
}

void multiply(const BlockMatrix& matrix, const RoundedRows& rows, const float* bias, std::size_t first,
              std::size_t last, float* y) {
    (matrix.bits == 4 ? all_rows<4> : all_rows<8>)(matrix, rows, bias, first, last, y);
}

constexpr TileKernels kTiles{8, round_row, transpose_tile, multiply};

}  // namespace
}  // namespace qwenvl::amx

namespace qwenvl {

const MultiplyKernels kAmxKernels{"amx-int8",         amx::supported,       vnni::round_row,
                                  vnni::multiply_few, vnni::multiply_panel, &amx::kTiles};

}  // namespace qwenvl

#endif
