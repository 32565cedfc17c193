// Workspaces that operators lend to their calls: as many as there are calls at a time, whatever threads they come from.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

namespace qwenvl {

template <typename T>
class Lent {
public:
    Lent() {
        const std::lock_guard<std::mutex> lock(pool().mutex);
        if (!pool().free.empty()) {
            held_ = std::move(pool().free.back());
            pool().free.pop_back();
        }
        if (held_ == nullptr) held_ = std::make_unique<T>();
    }
    ~Lent() {
        const std::lock_guard<std::mutex> lock(pool().mutex);
        pool().free.push_back(std::move(held_));
    }
    Lent(const Lent&) = delete;
    Lent& operator=(const Lent&) = delete;

    T& operator*() const { return *held_; }

private:
    struct Pool {
        std::mutex mutex;
        std::vector<std::unique_ptr<T>> free;
    };
    static Pool& pool() {
        static Pool* const made = new Pool;  // never destroyed: calls may end after static objects
        return *made;
    }

    std::unique_ptr<T> held_;
};

}  // namespace qwenvl
