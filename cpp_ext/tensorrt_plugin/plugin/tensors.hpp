// The op's tensors by number.
#pragma once

namespace qwenvl {

enum Input : int {
    kQkv,
    kPastKey,
    kPastValue,
    kRopeCos,
    kRopeSin,
    kWriteIndices,
    kQueryScale,
    kFloatCacheInputs,
    kKeyScale = kFloatCacheInputs,
    kValueScale,
    kInt8CacheInputs,
};

enum Output : int {
    kOut,
    kPresentKey,
    kPresentValue,
    kFloatCacheOutputs,
    kPresentKeyScale = kFloatCacheOutputs,
    kPresentValueScale,
    kInt8CacheOutputs,
};

constexpr int input_count(bool int8_cache) { return int8_cache ? kInt8CacheInputs : kFloatCacheInputs; }
constexpr int output_count(bool int8_cache) { return int8_cache ? kInt8CacheOutputs : kFloatCacheOutputs; }

// The past cache that an output continues: bound to the same memory when an engine runs. -1: it continues none.
constexpr int past_of(int output) {
    switch (output) {
        case kPresentKey:
            return kPastKey;
        case kPresentValue:
            return kPastValue;
        case kPresentKeyScale:
            return kKeyScale;
        case kPresentValueScale:
            return kValueScale;
        default:
            return -1;
    }
}

}  // namespace qwenvl
