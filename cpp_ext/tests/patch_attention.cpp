// Compares attention of a picture tower by every instruction set of this processor with the portable one, and AMX's tiles
// with what they must compute, bit for bit: heads of all published sizes and others, whole pictures, windows, clips.
// Prints the kernels; exits with 1 and names the case if one differs.
#include <algorithm>
#include <cstdio>

#include "patch_case.hpp"

int main() {
    int cases = 0;
    for (std::size_t dim : {8, 64, 72, 80, 104}) {
        for (std::size_t patches : {1, 33, 70, 270}) {
            for (std::size_t window : {0, 7}) {
                const std::uint64_t seed = static_cast<std::uint64_t>(++cases);
                if (patches == 270 && (dim != 72 || window != 0)) continue;  // plain C++ takes long
                const std::size_t heads = patches < 70 ? 2 : 1, pictures = patches < 70 ? 1 + seed % 2 : 1;
                const qwenvl::PatchCase given{heads, dim, pictures, patches, window, cases % 4 != 0, seed};
                const std::string other = qwenvl::other_patches(given);
                if (other.empty()) continue;
                std::printf("%s differs: heads of %zu, %zu patches, windows of %zu\n", other.c_str(), dim, patches,
                            window);
                return 1;
            }
        }
    }
    std::printf("%d calls alike:", cases);
    for (const std::string& name : qwenvl::kernel_variants()) std::printf(" %s", name.c_str());
    std::printf("%s\n", qwenvl::patch_tiles::supported() ? " amx-bf16" : "");
}
