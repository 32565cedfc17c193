// Any shape: no access outside the arrays, and the same bits with every instruction set.
#include "../tests/block_case.hpp"
#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input(data, size);
    qwenvl::BlockCase given{};
    given.bits = input.between(0, 1) == 0 ? 4 : 8;
    given.block = std::size_t{32} << input.between(0, 3);
    given.inputs = given.block * input.between(1, 9);
    given.outputs = input.between(1, 70);
    given.rows = input.between(1, 9);
    given.has_bias = input.between(0, 1) == 1;
    given.has_halves = input.between(0, 1) == 1;
    given.seed = input.take<std::uint64_t>();
    fuzz::require(qwenvl::other_kernels(given).empty(), "every instruction set gives the same products");
    return 0;
}
