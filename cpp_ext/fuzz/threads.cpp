// A program for ThreadSanitizer, not a fuzz target: threads share a tokenizer and have their own samplers and pictures.
#include <atomic>
#include <thread>

#include "image/pixel_values.hpp"
#include "input.hpp"
#include "sampler/sampler.hpp"
#include "tokenizer/incremental_decoder.hpp"

using fuzz::require;

namespace {

struct Expected {
    std::string text;
    std::vector<qwenvl::TokenId> ids;
};

void use(const std::shared_ptr<const qwenvl::Tokenizer>& tokenizer, const Expected& expected, std::uint64_t seed) {
    const qwenvl::SpecialMatcher& all = tokenizer->special_tokens().all();
    std::vector<qwenvl::TokenId> ids;
    tokenizer->encode(expected.text, all, ids);
    require(ids == expected.ids, "threads encode alike");
    require(tokenizer->count(expected.text, all) == ids.size(), "threads count alike");
    require(tokenizer->decode({ids.begin(), ids.end()}) == expected.text, "threads decode alike");
    qwenvl::IncrementalDecoder decoder(tokenizer, {"nothing"});
    std::string pieces;
    for (qwenvl::TokenId id : ids) pieces += decoder.push(id);
    require(pieces + decoder.finish() == expected.text, "threads decode token by token alike");
    qwenvl::SamplingParams params;
    params.top_p = 0.9;
    params.seed = seed;
    const std::vector<float> row(3000, 1.0f);
    require(qwenvl::Sampler(params).sample(row.data(), row.size(), {}) < row.size(), "threads sample");
    const std::vector<std::uint8_t> bytes(3 * 20 * 30, 7);
    std::vector<float> values(3 * 8 * 8);
    qwenvl::pixel_values({bytes.data(), 20, 30, 90, 3, 1}, false, {{0, 0, 0}, {1, 1, 1}}, 8, 8, values.data());
}

}  // namespace

int main() {
    const std::string file = fuzz::vocabulary_file(fuzz::small_vocabulary());
    const std::vector<qwenvl::SpecialToken> special{{"<|end|>", 300}};
    const qwenvl::Tokenizer alone(file, special);
    constexpr std::size_t kSoon = 5000;  // bytes after which the threads build the linear-time encoder
    const auto tokenizer = std::make_shared<const qwenvl::Tokenizer>(file, special, kSoon);
    std::vector<Expected> expected;
    for (int i = 0; i < 50; ++i) {
        Expected each;
        for (int j = 0; j <= i; ++j)
            each.text += "the thing " + std::to_string(i * j) + " abcdabcdabcdabcdabcd <|end|>\n\n";
        alone.encode(each.text, alone.special_tokens().all(), each.ids);
        expected.push_back(each);
    }
    std::atomic<std::size_t> next{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
            for (std::size_t turn = next++; turn < 1000; turn = next++)
                use(tokenizer, expected[turn % expected.size()], turn);
        });
    }
    for (std::thread& thread : threads) thread.join();
    std::printf("threads: 1000 turns of 4 threads, no race\n");
}
