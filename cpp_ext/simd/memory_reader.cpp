#include "simd/memory_reader.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

namespace qwenvl {
namespace {

constexpr std::size_t kLine = 64, kLargePage = std::size_t{1} << 21;
constexpr std::size_t kPiece = std::size_t{1} << 18;  // what a thread takes at once
constexpr std::size_t kStreams[] = {1, 4, 8, 16}, kAhead[] = {0, 512, 4096, 16384};

// Reads a line of every stream in turn; the sum is of no interest.
template <std::size_t kCount>
std::uint64_t read_piece(const std::uint8_t* piece, std::size_t ahead) {
    constexpr std::size_t kEach = kPiece / kCount;
    std::uint64_t sums[kCount] = {};
    for (std::size_t i = 0; i < kEach; i += kLine) {
        for (std::size_t s = 0; s < kCount; ++s) {
            const std::uint8_t* const at = piece + s * kEach + i;
            if (ahead != 0) __builtin_prefetch(at + ahead, 0, 2);
            std::uint64_t word;
            std::memcpy(&word, at, sizeof word);
            sums[s] += word;
        }
    }
    std::uint64_t all = 0;
    for (const std::uint64_t sum : sums) all += sum;
    return all;
}

using ReadPiece = std::uint64_t(const std::uint8_t* piece, std::size_t ahead);

ReadPiece* reader_of(std::size_t streams) {
    switch (streams) {
        case 1:
            return read_piece<1>;
        case 4:
            return read_piece<4>;
        case 8:
            return read_piece<8>;
        case 16:
            return read_piece<16>;
    }
    throw std::invalid_argument("a MemoryReader reads 1, 4, 8 or 16 streams");
}

}  // namespace

MemoryReader::MemoryReader(std::size_t bytes, unsigned threads)
    : bytes_((bytes + kPiece - 1) / kPiece * kPiece), threads_(threads) {
    if (bytes == 0 || threads == 0) throw std::invalid_argument("a MemoryReader needs bytes and threads");
    mapped_ = bytes_ + kLargePage;
    void* const map = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    map_ = static_cast<std::uint8_t*>(map);
    data_ = map_ + (kLargePage - reinterpret_cast<std::uintptr_t>(map_) % kLargePage) % kLargePage;
    madvise(data_, bytes_, MADV_HUGEPAGE);  // a system without them has small ones
    std::memset(data_, 1, bytes_);
}

MemoryReader::~MemoryReader() { munmap(map_, mapped_); }

double MemoryReader::gb_s(std::size_t streams, std::size_t ahead) {
    std::atomic<std::size_t> next{0};
    std::atomic<std::uint64_t> found{0};
    const auto read = reader_of(streams);
    const auto work = [&] {
        std::uint64_t sum = 0;
        for (std::size_t at = next++; at < bytes_ / kPiece; at = next++) {
            const std::uint8_t* const piece = data_ + at * kPiece;
            sum += read(piece, ahead);
        }
        found += sum;
    };
    std::vector<std::thread> others;
    const auto started = std::chrono::steady_clock::now();
    for (unsigned i = 1; i < threads_; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - started;
    found_ += found;
    return static_cast<double>(bytes_) / spent.count() / 1e9;
}

double MemoryReader::best_gb_s(int repeats) {
    double best = 0;
    for (int i = 0; i < repeats; ++i) {
        for (const std::size_t streams : kStreams) {
            for (const std::size_t ahead : kAhead) best = std::max(best, gb_s(streams, ahead));
        }
    }
    return best;
}

}  // namespace qwenvl
