// Reads memory in every way, on one and on several threads, and prints what was read; for the sanitizers.
#include <cstdio>
#include <initializer_list>

#include "simd/memory_reader.hpp"

int main() {
    for (std::size_t bytes : {std::size_t{1}, std::size_t{1} << 18, (std::size_t{3} << 20) + 7}) {
        for (unsigned threads : {1u, 3u}) {
            qwenvl::MemoryReader reader(bytes, threads);
            if (reader.bytes() < bytes || !(reader.best_gb_s(2) > 0)) return 1;
        }
    }
    std::printf("read\n");
}
