// Compares products of a tower's layers by every kernel of this processor with the portable one, bit for bit: whole and
// partial tiles of rows, inputs and outputs. Prints the kernels; exits with 1 and names the case if one differs.
#include <cstdio>

#include "row_case.hpp"

int main() {
    int cases = 0;
    for (std::size_t inputs : {1, 3, 64, 100, 130, 427}) {
        for (std::size_t outputs : {1, 16, 33, 65, 300}) {
            for (std::size_t rows : {1, 5, 16, 31, 32, 70}) {
                const std::uint64_t seed = static_cast<std::uint64_t>(++cases);
                const qwenvl::RowCase given{inputs, outputs, rows, cases % 2 == 0, seed};
                const std::string other = qwenvl::other_row_kernels(given);
                if (other.empty()) continue;
                std::printf("%s differs: %zu inputs, %zu outputs, %zu rows\n", other.c_str(), inputs, outputs, rows);
                return 1;
            }
        }
    }
    std::printf("%d products alike:", cases);
    for (const std::string& name : qwenvl::multiply_variants()) std::printf(" %s", name.c_str());
    std::printf("\n");
}
