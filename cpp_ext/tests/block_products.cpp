// Compares every kernel of this processor with the portable one, bit for bit: whole and partial chunks and panels, both
// precisions, all block sizes. Prints the kernels; exits with 1 and names the case if one differs.
#include <cstdio>

#include "block_case.hpp"

int main() {
    int cases = 0;
    for (int bits : {4, 8}) {
        for (std::size_t block : {32, 64, 128, 256}) {
            for (std::size_t blocks : {1, 2, 3, 5, 13}) {
                for (std::size_t outputs : {1, 33, 77}) {
                    for (std::size_t rows : {1, 2, 3, 4, 5, 7, 13, 35}) {
                        const std::uint64_t seed = static_cast<std::uint64_t>(++cases);
                        const qwenvl::BlockCase given{bits,           block, blocks * block, outputs, rows,
                                                      cases % 2 == 0, seed,  cases % 7 < 3};
                        const std::string other = qwenvl::other_kernels(given);
                        if (other.empty()) continue;
                        std::printf("%s differs: %d bits, blocks of %zu, %zu inputs, %zu outputs, %zu rows\n",
                                    other.c_str(), bits, block, given.inputs, outputs, rows);
                        return 1;
                    }
                }
            }
        }
    }
    std::printf("%d products alike:", cases);
    for (const std::string& name : qwenvl::multiply_variants()) std::printf(" %s", name.c_str());
    std::printf("\n");
}
