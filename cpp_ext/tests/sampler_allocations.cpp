// Counts allocations while tokens are sampled. Exits with 1 and names the setting if there is one after the first
// token.
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

#include "sampler/logits_row.hpp"
#include "sampler/philox.hpp"
#include "sampler/sampler.hpp"

namespace {

std::size_t g_allocations = 0;

constexpr std::size_t kVocabulary = 20000;

// A row with few or many likely tokens, so that the number of candidates changes much between steps.
void fill(std::vector<std::uint16_t>& row, std::uint64_t seed) {
    for (std::size_t i = 0; i < row.size(); ++i) {
        const double random = qwenvl::uniform(seed, i);
        row[i] = static_cast<std::uint16_t>(seed % 2 == 0 ? 0x3C00 + random * 64 : random * 0x4A00);
    }
}

bool allocates(const char* name, const qwenvl::SamplingParams& params) {
    qwenvl::Sampler sampler(params);
    qwenvl::LogitsReader reader;
    std::vector<std::uint16_t> row(kVocabulary);
    const std::vector<std::int64_t> previous{1, 2, 3, 3};
    const std::vector<std::uint8_t> allowed(kVocabulary, 1);
    std::size_t before = 0;
    for (std::uint64_t token = 0; token < 20; ++token) {
        fill(row, token * 7 + 1);
        const float* logits = reader.read({row.data(), row.size(), 2, qwenvl::FloatType::kFloat16});
        sampler.sample(logits, row.size(), {previous.data(), previous.size(), 1, allowed.data()});
        if (token == 0) before = g_allocations;
    }
    if (g_allocations == before) return false;
    std::printf("%s: %zu allocations after the first token\n", name, g_allocations - before);
    return true;
}

qwenvl::SamplingParams with(void (*set)(qwenvl::SamplingParams&)) {
    qwenvl::SamplingParams params;
    set(params);
    return params;
}

}  // namespace

void* operator new(std::size_t size) {
    ++g_allocations;
    if (void* memory = std::malloc(size)) return memory;
    throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

int main() {
    bool any = allocates("greedy", with([](auto& p) { p.temperature = 0; }));
    any |= allocates("draw", with([](auto&) {}));
    any |= allocates("top-k", with([](auto& p) { p.top_k = 50; }));
    any |= allocates("large top-k", with([](auto& p) { p.top_k = 5000; }));
    any |= allocates("top-p", with([](auto& p) { p.top_p = 0.9; }));
    any |= allocates("min-p", with([](auto& p) { p.min_p = 0.05; }));
    any |= allocates("typical", with([](auto& p) { p.typical_p = 0.9; }));
    any |= allocates("penalties", with([](auto& p) { p.repetition_penalty = 1.2, p.presence_penalty = 0.5; }));
    any |= allocates("all", with([](auto& p) { p.top_k = 40, p.top_p = 0.9, p.min_p = 0.01, p.typical_p = 0.95; }));
    if (g_allocations == 0) std::printf("nothing was counted\n");
    return any || g_allocations == 0;
}
