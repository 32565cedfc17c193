// The limit of everything that reads much memory once, as a token does its weights: how fast this machine reads it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwenvl {

// Memory of its own, on large pages where the system gives them, and threads that read it in as many ways as there are:
// one and several streams per thread, fetched ahead and not. One load per cache line, so that nothing is computed.
class MemoryReader {
public:
    // Throws std::bad_alloc, and std::invalid_argument for no bytes or no threads.
    MemoryReader(std::size_t bytes, unsigned threads);
    ~MemoryReader();
    MemoryReader(const MemoryReader&) = delete;
    MemoryReader& operator=(const MemoryReader&) = delete;

    std::size_t bytes() const { return bytes_; }

    // Reads everything once, in 1, 4, 8 or 16 streams per thread, each fetched `ahead` bytes ahead; gigabytes per second.
    // Throws std::invalid_argument for another number of streams.
    double gb_s(std::size_t streams, std::size_t ahead);

    // Reads everything `repeats` times in each way; the most gigabytes per second of any of them.
    double best_gb_s(int repeats);

private:

    std::size_t bytes_, mapped_ = 0;
    unsigned threads_;
    std::uint8_t *map_ = nullptr, *data_ = nullptr;
    std::uint64_t found_ = 0;  // what was read, so that no compiler leaves the reading out
};

}  // namespace qwenvl
