// AMX: whether this process may use tiles, and what both kinds of products need of them.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#define QWENVL_HAS_AMX

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#if defined(__clang__)
#define QWENVL_UNROLL _Pragma("unroll")
#else
#define QWENVL_UNROLL _Pragma("GCC unroll 16")
#endif

namespace qwenvl::amx {

// The memory that LDTILECFG reads.
struct alignas(64) TileConfig {
    std::uint8_t palette, start_row, reserved[14];
    std::uint16_t bytes_per_row[16];
    std::uint8_t rows[16];
};

// Eight whole tiles of 16 rows of 64 bytes.
constexpr TileConfig kEightTiles{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Linux lets a process use tiles only after it has asked; from then on every thread of it may.
inline bool permitted() {
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

// True if the processor has tiles for products of bytes and of bfloat16, and the system lends them.
inline bool has_tiles() {
    static const bool found = [] {
        unsigned a = 0, b = 0, c = 0, d = 0;
        const bool named = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0;
        constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
        const bool tiles = named && (d & kAmxBf16) && (d & kAmxTile) && (d & kAmxInt8);
        return tiles && __builtin_cpu_supports("avx512bf16") && permitted();
    }();
    return found;
}

}  // namespace qwenvl::amx

#endif
