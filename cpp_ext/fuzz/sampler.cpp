// Any settings on any logits give an allowed id, the same with every instruction set, or a clear error.
#include "sampler/sampler.hpp"

#include <cmath>
#include <memory>
#include <stdexcept>

#include "input.hpp"
#include "sampler/logits_row.hpp"
#include "simd/instruction_set.hpp"

using fuzz::require;

namespace {

// A number in [0, 1], often a round one.
double share(fuzz::Input& input) { return static_cast<double>(input.take<std::uint8_t>()) / 255; }

qwenvl::SamplingParams take_params(fuzz::Input& input) {
    qwenvl::SamplingParams params;
    params.temperature = share(input) * share(input) * 4;
    params.top_k = static_cast<std::int64_t>(input.between(0, 600));
    params.top_p = std::fmax(share(input), 1e-9);
    params.min_p = share(input) * share(input);
    params.typical_p = std::fmax(share(input), 1e-9);
    params.repetition_penalty = 0.5 + 2 * share(input);
    params.presence_penalty = share(input) - 0.5;
    params.frequency_penalty = share(input) - 0.5;
    params.seed = input.take<std::uint64_t>();
    for (std::size_t i = input.between(0, 3); i > 0; --i)
        params.banned_ids.push_back(static_cast<std::int64_t>(input.between(0, 700)));
    return params;
}

struct Step {
    std::vector<std::int64_t> previous;
    std::vector<std::uint8_t> allowed;
    std::unique_ptr<std::uint16_t[]> row;  // exactly as large as needed, so that a read after its end is found
    qwenvl::LogitsRow logits;
};

Step take_step(fuzz::Input& input) {
    Step step;
    for (std::size_t i = input.between(0, 4); i > 0; --i)
        step.previous.push_back(static_cast<std::int64_t>(input.between(0, 700)) - (i == 4 ? 1 : 0));
    const std::size_t values = input.left() / 2 + 1, repeats = 1 + input.take<std::uint8_t>() % 20;
    const std::string_view bytes = input.take_bytes(2 * values);
    const std::size_t words = bytes.size() / 2, size = words * repeats;
    step.row = std::make_unique<std::uint16_t[]>(size);
    for (std::size_t i = 0; i < repeats; ++i) std::memcpy(step.row.get() + i * words, bytes.data(), 2 * words);
    const std::size_t kind = repeats % 3;
    if (kind == 0) {
        step.logits = {step.row.get(), size / 2, 4, qwenvl::FloatType::kFloat32};
    } else {
        step.logits = {step.row.get(), size, 2, kind == 1 ? qwenvl::FloatType::kFloat16 : qwenvl::FloatType::kBFloat16};
    }
    if (repeats % 2 == 0) {
        for (std::size_t i = 0; i < step.logits.size; ++i) step.allowed.push_back(i % 5 != repeats % 5);
    }
    return step;
}

constexpr std::int64_t kRefused = -1;

std::int64_t sample(const qwenvl::SamplingParams& params, const Step& step) {
    qwenvl::Sampler sampler(params);
    qwenvl::LogitsReader reader;
    const float* row = reader.read(step.logits);
    const qwenvl::StepContext context{step.previous.data(), step.previous.size(), 1,
                                      step.allowed.empty() ? nullptr : step.allowed.data()};
    std::int64_t id = kRefused;
    try {
        id = sampler.sample(row, step.logits.size, context);
        require(id < static_cast<std::int64_t>(step.logits.size), "the id is inside the row");
        require(step.allowed.empty() || step.allowed[static_cast<std::size_t>(id)], "the id is allowed");
        for (std::int64_t banned : params.banned_ids) require(id != banned, "the id is not banned");
        sampler.top_log_probs(row, step.logits.size, 5);
    } catch (const std::invalid_argument&) {
    }
    return id;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input(data, size);
    const qwenvl::SamplingParams params = take_params(input);
    const Step step = take_step(input);
    const std::vector<std::string> variants = qwenvl::kernel_variants();
    qwenvl::use_kernels(variants.front());
    const std::int64_t id = sample(params, step);
    for (const std::string& variant : variants) {
        qwenvl::use_kernels(variant);
        require(sample(params, step) == id, "every instruction set gives the same id");
    }
    return 0;
}
