// A picture tower's products and attention, of any shape: no access outside the arrays, and the same bits with every
// instruction set; tiles have those of their plain words.
#include "../tests/patch_case.hpp"
#include "../tests/row_case.hpp"
#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input(data, size);
    if (input.between(0, 1) == 0) {
        qwenvl::RowCase given{};
        given.inputs = input.between(1, 300);
        given.outputs = input.between(1, 130);
        given.rows = input.between(1, 70);
        given.has_bias = input.between(0, 1) == 1;
        given.seed = input.take<std::uint64_t>();
        fuzz::require(qwenvl::other_row_kernels(given).empty(), "every instruction set gives the same products");
        return 0;
    }
    qwenvl::PatchCase given{};
    given.heads = input.between(1, 3);
    given.dim = 2 * input.between(1, 64);
    given.pictures = input.between(1, 2);
    given.patches = input.between(1, 70);
    given.window = input.between(0, given.patches);
    given.rotates = input.between(0, 1) == 1;
    given.seed = input.take<std::uint64_t>();
    fuzz::require(qwenvl::other_patches(given).empty(), "every instruction set gives the same attention");
    return 0;
}
