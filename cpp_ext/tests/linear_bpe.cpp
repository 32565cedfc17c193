// The linear-time encoder: linear_bpe VOCABULARY. Exits with 1 and says what does not hold.
//
// Its work is counted, not timed: the tokens that it tries for growing texts. It is built late, and once for all
// threads.
#include "tokenizer/linear_bpe.hpp"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tokenizer/deferred_linear_bpe.hpp"

using qwenvl::DeferredLinearBpe;
using qwenvl::LinearBpe;
using qwenvl::Vocabulary;

namespace {

bool g_failed = false;

void expect(bool holds, const std::string& what) {
    if (holds) return;
    std::printf("does not hold: %s\n", what.c_str());
    g_failed = true;
}

std::size_t tried(const LinearBpe& linear, const std::string& text) {
    LinearBpe::OpenPlaces open;
    std::vector<qwenvl::TokenId> ids;
    return linear.encode(text, open, ids);
}

std::string repeated(const std::string& unit, std::size_t bytes) {
    std::string text;
    while (text.size() < bytes) text += unit;
    return text;
}

std::string random_letters(const std::string& letters, std::size_t bytes) {
    std::mt19937 generator(0);
    std::string text;
    while (text.size() < bytes) text += letters[generator() % letters.size()];
    return text;
}

// A megabyte takes 16 times the work of 64 KiB, with 2 % for the ends, and few tries per byte.
void expect_linear(const LinearBpe& linear, std::string (*make)(const std::string&, std::size_t),
                   const std::string& unit) {
    constexpr std::size_t kSmall = std::size_t{1} << 16, kTimes = 16, kMostTries = 4;
    const std::size_t small = tried(linear, make(unit, kSmall)), large = tried(linear, make(unit, kTimes * kSmall));
    const std::string found = ", for \"" + unit + "\" " + std::to_string(small) + " and " + std::to_string(large);
    expect(large <= kTimes * (small + small / 50), "the work grows like the text" + found);
    expect(large <= kMostTries * kTimes * kSmall, "few tokens are tried per byte" + found);
}

void expect_late(const Vocabulary& vocabulary) {
    DeferredLinearBpe deferred(vocabulary, 100);
    expect(deferred.get_for(60) == nullptr && deferred.get_for(39) == nullptr, "little text does not build it");
    std::vector<const LinearBpe*> seen(8);
    std::vector<std::thread> threads;
    for (const LinearBpe*& each : seen) threads.emplace_back([&] { each = deferred.get_for(1); });
    for (std::thread& thread : threads) thread.join();
    for (const LinearBpe* each : seen) expect(each != nullptr && each == seen[0], "all threads get the same one");
    expect(deferred.get_for(0) == seen[0], "it stays");
    expect(DeferredLinearBpe(vocabulary, 100).get_for(1 << 20) != nullptr, "one long part builds it");
}

}  // namespace

int main(int, char** arguments) {
    std::ifstream file(arguments[1], std::ios::binary);
    const Vocabulary vocabulary(std::string{std::istreambuf_iterator<char>(file), {}});
    const std::unique_ptr<LinearBpe> linear = LinearBpe::make(vocabulary);
    if (!linear) {
        std::printf("the vocabulary does not fit the linear encoder\n");
        return 1;
    }
    for (const char* unit : {"a", " ", "\n", "7", "ab", "\xE4\xB8\xAD", "\xCC\x81", "\xF0\x9F\x98\x80"}) {
        expect_linear(*linear, repeated, unit);
    }
    for (const char* letters : {"ab", "etaoinshrdlu"}) expect_linear(*linear, random_letters, letters);
    expect_late(vocabulary);
    return g_failed ? 1 : 0;
}
