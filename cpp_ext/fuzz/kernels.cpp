// A program for ThreadSanitizer, not a fuzz target: threads share the rows and the results of products and of a tower's
// attention, as the operators' tasks do.
#include <atomic>
#include <thread>

#include "../tests/patch_case.hpp"
#include "../tests/row_case.hpp"
#include "input.hpp"

namespace {

using qwenvl::random_array;

// Does `count` pieces of work on four threads.
template <typename Work>
void share(std::size_t count, Work work) {
    std::atomic<std::size_t> next{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
            for (std::size_t at = next++; at < count; at = next++) work(at);
        });
    }
    for (std::thread& thread : threads) thread.join();
}

void multiply_blocks(std::size_t count, std::size_t block) {
    std::mt19937_64 random(count);
    const std::size_t inputs = 10 * block, outputs = 300;
    const auto packed = random_array<std::uint8_t>(outputs * inputs / 2, random, 0, 256);
    const auto scales = random_array<float>(outputs * inputs / block, random, 1e-4, 1e-2);
    const auto x = random_array<float>(count * inputs, random, -3, 3);
    const qwenvl::BlockMatrix matrix{outputs, inputs, 4, block, packed.get(), scales.get()};
    qwenvl::RoundedRows rows;
    rows.reset(matrix, count);
    share((count + qwenvl::kTileRows - 1) / qwenvl::kTileRows, [&](std::size_t tile) {
        const std::size_t first = tile * qwenvl::kTileRows, last = std::min(first + qwenvl::kTileRows, count);
        for (std::size_t row = first; row < last; ++row) rows.round(row, x.get() + row * inputs);
    });
    std::vector<float> y(count * outputs), alone(y);
    const std::size_t each = std::min<std::size_t>(qwenvl::outputs_per_task(matrix, rows), 64);
    const auto task = [&](std::size_t at, float* to) {
        qwenvl::multiply(matrix, rows, nullptr, at * each, std::min((at + 1) * each, outputs), to);
    };
    const std::size_t tasks = (outputs + each - 1) / each;
    share(tasks, [&](std::size_t at) { task(at, y.data()); });
    for (std::size_t at = 0; at < tasks; ++at) task(at, alone.data());
    fuzz::require(y == alone, "threads multiply blocks as one does");
}

void multiply_rows(std::size_t count) {
    std::mt19937_64 random(count);
    const std::size_t inputs = 130, outputs = 900;
    const auto weights = random_array<std::int8_t>(inputs * outputs, random, -127, 127);
    const auto scales = random_array<float>(outputs, random, 1e-4, 1e-2);
    const auto x = random_array<float>(count * inputs, random, -3, 3);
    const qwenvl::RowMatrix matrix{outputs, inputs, weights.get(), scales.get()};
    qwenvl::ByteRows rows;
    rows.reset(count, inputs);
    share(count, [&](std::size_t row) { rows.round(row, x.get() + row * inputs); });
    std::vector<float> y(count * outputs), alone(y);
    const std::size_t each = qwenvl::outputs_per_task(matrix);
    const auto task = [&](std::size_t at, float* to) {
        const std::size_t last = std::min((at + 1) * each, outputs);
        qwenvl::multiply(matrix, rows, nullptr, at * each, last, to, [](std::size_t, std::size_t) {});
    };
    const std::size_t tasks = (outputs + each - 1) / each;
    share(tasks, [&](std::size_t at) { task(at, y.data()); });
    for (std::size_t at = 0; at < tasks; ++at) task(at, alone.data());
    fuzz::require(y == alone, "threads multiply a tower's rows as one does");
}

void attend(std::size_t patches, std::size_t window) {
    const qwenvl::PatchCase given{2, 72, 2, patches, window, true, 1};
    qwenvl::PatchArrays arrays(given);
    const std::vector<float> alone = arrays.run(false);
    fuzz::require(alone == arrays.run([](std::size_t count, auto work) { share(count, work); }),
                  "threads attend as one does");
}

}  // namespace

int main() {
    int turns = 0;
    for (const std::string& name : qwenvl::multiply_variants()) {
        qwenvl::use_multiply(name);
        for (const std::size_t count : {1, 7, 40}) {
            for (const std::size_t block : {32, 128}) multiply_blocks(count, block);
            multiply_rows(count);
        }
        for (const std::size_t window : {0, 9}) attend(70, window);
        turns += 11;
    }
    std::printf("kernels: %d products and attentions shared by 4 threads, no race\n", turns);
}
