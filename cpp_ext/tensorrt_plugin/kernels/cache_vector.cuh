// Neighbouring elements of a cached key or value, loaded at once and widened in registers.
#pragma once

#include "float_types.cuh"

namespace qwenvl {

// 16 bytes; 8 where a head's int8 vector is no multiple of 16 (D = 104).
template <typename Cache, int D>
constexpr int kVectorBytes = D * sizeof(Cache) % 16 == 0 ? 16 : 8;

constexpr int power_of_two_from(int n) { return n <= 1 ? 1 : 2 * power_of_two_from((n + 1) / 2); }

template <typename Cache, int D>
struct CacheVector {
    static constexpr int kBytes = kVectorBytes<Cache, D>, kSize = kBytes / int{sizeof(Cache)};
    static constexpr int kLanes =
        power_of_two_from(D / kSize);  // neighbouring lanes that share out a head's D elements
    std::uint32_t words[kBytes / 4];

    // Zeros where not `valid`; the pointer is not followed then.
    __device__ __forceinline__ void load(const Cache* source, bool valid) {
        if constexpr (kBytes == 16) {
            const uint4 w = valid ? *reinterpret_cast<const uint4*>(source) : make_uint4(0, 0, 0, 0);
            words[0] = w.x, words[1] = w.y, words[2] = w.z, words[3] = w.w;
        } else {
            const uint2 w = valid ? *reinterpret_cast<const uint2*>(source) : make_uint2(0, 0);
            words[0] = w.x, words[1] = w.y;
        }
    }

    __device__ __forceinline__ void widen(float (&x)[kSize]) const {
#pragma unroll
        for (int w = 0; w < kBytes / 4; ++w) {
            if constexpr (sizeof(Cache) == 1) {
                // x + 128 as the low byte of 2^23's mantissa is a float already: two cheap instructions per element.
                const std::uint32_t biased = words[w] ^ 0x80808080u;
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    x[4 * w + i] = __uint_as_float(__byte_perm(biased, 0x4B000000u, 0x7650u + i)) - 8388736.0f;
            } else {
                const float2 pair = unpack<Cache>(words[w]);
                x[2 * w] = pair.x, x[2 * w + 1] = pair.y;
            }
        }
    }
};

}  // namespace qwenvl
