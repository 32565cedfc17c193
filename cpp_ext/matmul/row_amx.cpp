// AMX: two tiles of 16 rows by two of 16 outputs at a time.
#include "matmul/row_kernels.hpp"

#if defined(QWENVL_HAS_AMX)

#include "matmul/row_x86.hpp"

#define QWENVL_AMX __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni,amx-tile,amx-int8")))

namespace qwenvl::row_kernels {
namespace {

constexpr std::size_t kSums = kLanes * kLanes;

// Lines of the rows that come next, so that they are in the second cache by then.
struct Ahead {
    const std::int8_t* at;
    std::size_t lines;  // per chunk of inputs

    void fetch() {
        for (std::size_t i = 0; i < lines; ++i, at += 64) __builtin_prefetch(at, 0, 2);
    }
};

// Sums of 32 rows and 32 outputs: [16 rows, 16 outputs, row, output].
QWENVL_AMX void sum_tiles(const std::int8_t* x, const std::int8_t* weights, std::size_t chunks, Ahead& ahead,
                          std::int32_t* sums) {
    const std::size_t step = chunks * ByteRows::kTileBytes;  // from the first rows or outputs to the second ones
    constexpr int kRow = kLanes * sizeof *sums;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::size_t at = 0; at < step; at += ByteRows::kTileBytes) {
        _tile_loadd(4, x + at, ByteRows::kInputs);
        _tile_loadd(6, weights + at, kGroupBytes);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, weights + step + at, kGroupBytes);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, x + step + at, ByteRows::kInputs);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
        ahead.fetch();
    }
    _tile_stored(0, sums, kRow);
    _tile_stored(1, sums + kSums, kRow);
    _tile_stored(2, sums + 2 * kSums, kRow);
    _tile_stored(3, sums + 3 * kSums, kRow);
}

QWENVL_VNNI void write_tiles(const std::int32_t* sums, const RowMatrix& matrix, const ByteRows& rows, const float* bias,
                             std::size_t row, std::size_t output, std::size_t last, float* y) {
    for (std::size_t r = 0; r < std::min(ByteRows::kRows, rows.count() - row); ++r) {
        for (std::size_t t = 0; t < 2 && output + t * kLanes < last; ++t) {
            const std::int32_t* const at = sums + (r / kLanes * 2 + t) * kSums + r % kLanes * kLanes;
            write_outputs(_mm512_load_si512(at), matrix, rows.scale(row + r), bias, output + t * kLanes, last,
                          y + (row + r) * matrix.outputs);
        }
    }
}

}  // namespace

QWENVL_AMX void amx(const RowMatrix& matrix, const ByteRows& rows, const float* bias, std::size_t first,
                    std::size_t last, float* y, const RowsDone& done) {
    thread_local PackedWeights weights;
    alignas(64) std::int32_t sums[2][4 * kSums];
    weights.fill(matrix, first, last);
    const std::size_t chunks = rows.chunks(), pairs = (last - first + 2 * kLanes - 1) / (2 * kLanes);
    const std::size_t lines = (ByteRows::kRows + pairs - 1) / pairs;
    const std::size_t turns = (rows.count() + ByteRows::kRows - 1) / ByteRows::kRows * pairs;
    const auto finish = [&](std::size_t turn) QWENVL_VNNI {
        const std::size_t row = turn / pairs * ByteRows::kRows, pair = turn % pairs;
        write_tiles(sums[turn % 2], matrix, rows, bias, row, first + pair * 2 * kLanes, last, y);
        if (pair + 1 == pairs) done(row, std::min(row + ByteRows::kRows, rows.count()));
    };
    Ahead ahead{};
    __asm__ volatile("" ::: "memory");  // the compiler does not know that tiles are loaded from memory
    _tile_loadconfig(&qwenvl::amx::kEightTiles);
    for (std::size_t turn = 0; turn < turns; ++turn) {
        const std::size_t row = turn / pairs * ByteRows::kRows, pair = turn % pairs;
        const std::size_t next = row + ByteRows::kRows;
        if (pair == 0) ahead = next < rows.count() ? Ahead{rows.values(next), lines} : Ahead{rows.values(row), 0};
        sum_tiles(rows.values(row), weights.tile(2 * pair), chunks, ahead, sums[turn % 2]);
        __asm__ volatile("" ::: "memory");
        if (turn > 0) finish(turn - 1);  // while the tiles are busy
    }
    _tile_release();
    if (turns > 0) finish(turns - 1);
}

}  // namespace qwenvl::row_kernels

#endif
