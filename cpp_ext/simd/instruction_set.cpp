#include "simd/instruction_set.hpp"

#include <atomic>
#include <stdexcept>

namespace qwenvl {
namespace {

struct Variant {
    const char* name;
    InstructionSet set;
    bool supported;
};

// Best first.
const Variant kVariants[] = {
#if defined(__x86_64__)
    {"avx512", InstructionSet::kAvx512,
     __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw")},
    {"avx2", InstructionSet::kAvx2,
     __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
    {"portable", InstructionSet::kPortable, true},
};

InstructionSet best() {
    const Variant* variant = kVariants;
    while (!variant->supported) ++variant;
    return variant->set;
}

std::atomic<InstructionSet> g_set{best()};

}  // namespace

InstructionSet instruction_set() { return g_set.load(std::memory_order_relaxed); }

std::vector<std::string> kernel_variants() {
    std::vector<std::string> names;
    for (const Variant& variant : kVariants) {
        if (variant.supported) names.emplace_back(variant.name);
    }
    return names;
}

void use_kernels(const std::string& name) {
    for (const Variant& variant : kVariants) {
        if (variant.supported && variant.name == name) {
            g_set = variant.set;
            return;
        }
    }
    throw std::invalid_argument("this processor has no kernels named " + name);
}

}  // namespace qwenvl
