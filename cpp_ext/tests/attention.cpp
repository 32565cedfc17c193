// Compares attention of every instruction set of this processor with the portable one, bit for bit: one query and many,
// whole and partial spans, grouped heads, batches. Prints the instruction sets; exits with 1 and names the case if one
// differs. All halves are widened and narrowed again first.
#include <cstdio>

#include "attention/attention_rows.hpp"
#include "attention_case.hpp"

namespace {

// The number of halves whose conversion is not what it is one at a time.
int wrong_halves(const std::string& name) {
    qwenvl::use_kernels(name);
    int wrong = 0;
    for (std::uint32_t first = 0; first < 0x10000; first += 16) {
        qwenvl::Half halves[16], again[16];
        float floats[16];
        for (std::uint32_t i = 0; i < 16; ++i) halves[i] = static_cast<qwenvl::Half>(first + i);
        qwenvl::widen_row(halves, 16, floats);
        qwenvl::narrow_row(floats, 16, again);
        for (int i = 0; i < 16; ++i) {
            const bool infinite = (halves[i] & 0x7FFF) == 0x7C00, none = (halves[i] & 0x7FFF) > 0x7C00;
            const float alone = qwenvl::widened(halves[i]);
            const bool same = none ? std::isnan(floats[i]) : std::memcmp(&alone, &floats[i], sizeof alone) == 0;
            const bool kept = none ? (again[i] & 0x7FFF) > 0x7C00
                                   : again[i] == (infinite ? halves[i] - 1 : halves[i]);  // the largest instead
            wrong += !same || !kept;
        }
        for (std::uint32_t i = 0; i < 16; ++i) {  // between two halves, and on the border
            floats[i] = qwenvl::float_of(qwenvl::bits_of(floats[i]) + (i % 4) * 0x800u + i / 8);
        }
        qwenvl::narrow_row(floats, 16, again);
        for (int i = 0; i < 16; ++i) wrong += !std::isnan(floats[i]) && again[i] != qwenvl::narrowed(floats[i]);
    }
    return wrong;
}

}  // namespace

int main() {
    for (const std::string& name : qwenvl::kernel_variants()) {
        if (const int wrong = wrong_halves(name)) {
            std::printf("%s: %d halves are converted otherwise\n", name.c_str(), wrong);
            return 1;
        }
    }
    int cases = 0;
    for (std::size_t dim : {16, 80, 128}) {
        for (std::size_t tokens : {1, 3, 6, 50}) {
            for (std::size_t before : {0, 5, 120, 260}) {
                for (std::size_t group : {1, 3}) {
                    const std::uint64_t seed = static_cast<std::uint64_t>(++cases);
                    const std::size_t batch = seed % 3 == 0 ? 2 : 1;
                    const qwenvl::AttentionCase given{{batch, tokens, 2 * group, 2, dim, before + tokens},
                                                      before, cases % 2 == 0, cases % 5 == 0, seed};
                    const std::string other = qwenvl::other_attention(given);
                    if (other.empty()) continue;
                    std::printf("%s differs: heads of %zu, %zu queries each, %zu tokens behind %zu, batch %zu\n",
                                other.c_str(), dim, group, tokens, before, batch);
                    return 1;
                }
            }
        }
    }
    std::printf("%d calls alike:", cases);
    for (const std::string& name : qwenvl::kernel_variants()) std::printf(" %s", name.c_str());
    std::printf("\n");
}
