// Memory whose beginning is that of a cache line: a vector of 64 bytes that crosses a line costs two loads.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace qwenvl {

template <typename T>
struct CacheLineAllocator {
    using value_type = T;
    static constexpr std::align_val_t kAlignment{64};

    CacheLineAllocator() = default;
    template <typename U>
    CacheLineAllocator(const CacheLineAllocator<U>&) {}

    T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kAlignment)); }
    void deallocate(T* pointer, std::size_t) { ::operator delete(pointer, kAlignment); }

    // Elements are not filled with zeros; whoever uses them writes them first.
    template <typename U>
    void construct(U* at) {
        ::new (static_cast<void*>(at)) U;
    }

    bool operator==(const CacheLineAllocator&) const { return true; }
    bool operator!=(const CacheLineAllocator&) const { return false; }
};

template <typename T>
using AlignedVector = std::vector<T, CacheLineAllocator<T>>;

}  // namespace qwenvl
