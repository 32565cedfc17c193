// The choice of vector instructions for the kernels. Every variant computes the same bits; only the speed differs.
#pragma once

#include <string>
#include <vector>

namespace qwenvl {

enum class InstructionSet { kPortable, kAvx2, kAvx512 };  // kPortable uses SSE2 or NEON, part of every 64-bit processor

InstructionSet instruction_set();

// Names of the variants that this processor can run, best first. The first is in use; the others are for tests.
std::vector<std::string> kernel_variants();
void use_kernels(const std::string& name);

// The variant of a kernel that is in use.
template <typename Kernel>
Kernel choose_kernel(Kernel avx512, Kernel avx2, Kernel portable) {
    switch (instruction_set()) {
        case InstructionSet::kAvx512:
            return avx512;
        case InstructionSet::kAvx2:
            return avx2;
        default:
            return portable;
    }
}

}  // namespace qwenvl

// Attributes of the functions of a variant. GCC uses 512-bit vectors only on request; Clang rejects the request.
#define QWENVL_AVX2 __attribute__((target("avx2,fma,f16c")))
#if defined(__clang__)
#define QWENVL_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw")))
#else
#define QWENVL_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,prefer-vector-width=512")))
#endif

// The variant in use of a kernel that is defined in the namespaces avx512, avx2 and portable.
#if defined(__x86_64__)
#define QWENVL_CHOOSE(kernel) choose_kernel(&avx512::kernel, &avx2::kernel, &portable::kernel)
#else
#define QWENVL_CHOOSE(kernel) (&portable::kernel)
#endif
