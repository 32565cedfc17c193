// Attention of a picture tower in AMX's tiles of bfloat16. Scores are computed key by query, so that the softmax of 16
// queries is one of 16 lanes, and values dimension by query.
//
// Keys lie by tile of 16 keys, 32 dimensions and key; queries by tile of 16 queries, pair of dimensions and query; values
// by 32 keys, tile of 16 dimensions and dimension. What is missing of a tile is zero.
#pragma once

#include "attention/patch_attention.hpp"
#include "matmul/amx.hpp"

namespace qwenvl::patch_tiles {

constexpr std::size_t kTile = 16, kTileDims = 32, kTileNumbers = kTile * kTileDims;
constexpr std::size_t kQueries = 2 * kTile;  // of a block
constexpr std::size_t kTerms = 1;  // 1: keys and queries as one bfloat16; 3: as the sum of two, three products of them

struct Layout {
    explicit Layout(std::size_t dim)
        : chunks((dim + kTileDims - 1) / kTileDims), key_tiles(kTerms * chunks), value_tiles((dim + kTile - 1) / kTile) {}

    std::size_t chunks;       // tiles of dimensions
    std::size_t key_tiles;    // tiles per 16 keys
    std::size_t value_tiles;  // tiles per 32 keys

    std::size_t key_numbers() const { return 2 * key_tiles * kTileNumbers; }  // of kKeyChunk keys
    std::size_t value_numbers() const { return value_tiles * kTileNumbers; }
};

bool supported();

// The places of up to 32 rows of one head, from the first one on.
struct Prepared {
    std::uint16_t *queries, *keys, *values;
};

// Writes the queries, keys and values of up to kKeyChunk rows of one head. `rows` are the rows of qkv.
void prepare(const PatchCall& call, std::size_t head, const std::uint32_t* rows, std::size_t count, const Prepared& out);

// Attends with the queries of up to kQueries rows to the segment's `count` keys from the first one on.
void attend(const PatchCall& call, std::size_t head, const std::uint32_t* rows, std::size_t row_count,
            const Prepared& given, std::size_t count);

}  // namespace qwenvl::patch_tiles
