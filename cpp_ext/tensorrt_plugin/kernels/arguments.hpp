// Arguments of a call of the op. docs/plugin.md defines the tensors and what is computed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwenvl {

enum class FloatType : std::int32_t { kHalf = 0, kBFloat16 = 1 };

struct Sizes {
    std::int32_t batch;     // B
    std::int32_t tokens;    // T, new tokens per row
    std::int32_t heads;     // NH
    std::int32_t kv_heads;  // KVH, divides NH
    std::int32_t head_dim;  // D
    std::int32_t capacity;  // C
};

// Pointers are device memory. A plain struct of fixed layout, because ctypes fills it too
// (tests/support/kv_cache_attention.py).
struct Arguments {
    Sizes sizes;
    FloatType float_type;
    std::int32_t int8_cache;            // 0 or 1
    const void* qkv;                    // [B, T, (NH + 2 KVH) D] float
    const float* rope_cos;              // [B, T, D/2]
    const float* rope_sin;              // [B, T, D/2]
    const std::int64_t* write_indices;  // [B]
    const float* query_scale;           // [B, T]
    void* key;                          // [B, KVH, C, D] float or int8, updated in place
    void* value;                        // likewise
    float* key_scale;                   // [B, KVH, C], null unless int8_cache
    float* value_scale;                 // likewise
    void* out;                          // [B, T, NH D] float
    void* workspace;                    // workspace_bytes(head_dim) bytes, 16-byte aligned
    std::uint32_t* counters;            // kCounters zeros, which every call leaves as zeros, or null: then a decoded
                                        // token takes a second kernel. Calls that run at once must not share them.
};

}  // namespace qwenvl
