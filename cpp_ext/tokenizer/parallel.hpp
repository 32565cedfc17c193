// Independent pieces of work on several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <system_error>
#include <thread>
#include <vector>

namespace qwenvl {

// Calls work(i) for every i below `count`, on at most `threads` threads of which the caller is one. The first error of
// each thread ends its work; one of them is thrown when all have ended.
template <typename Work>
void parallel_for(std::size_t count, std::size_t threads, Work work) {
    threads = std::clamp<std::size_t>(threads, 1, std::max<std::size_t>(count, 1));
    std::atomic<std::size_t> next{0};
    std::vector<std::exception_ptr> errors(threads);
    const auto run = [&](std::exception_ptr& error) {
        try {
            for (std::size_t i = next++; i < count; i = next++) work(i);
        } catch (...) {
            error = std::current_exception();
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(threads - 1);
    try {
        for (std::size_t i = 1; i < threads; ++i) helpers.emplace_back(run, std::ref(errors[i]));
    } catch (const std::system_error&) {  // no more threads to be had: those there are do the work
    }
    run(errors[0]);
    for (std::thread& helper : helpers) helper.join();
    for (const std::exception_ptr& error : errors) {
        if (error) std::rethrow_exception(error);
    }
}

}  // namespace qwenvl
