// The linear-time encoder, built when text first needs it.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>

#include "tokenizer/linear_bpe.hpp"

namespace qwenvl {

// Building the encoder takes longer than merging a few pages of text without it, so the bytes that it would serve are
// counted first. A part is counted before it is encoded: no text, however hostile, is merged without it for long.
class DeferredLinearBpe {
public:
    static constexpr std::size_t kWorthBytes = std::size_t{1} << 18;

    // Builds after `worth_bytes`. `vocabulary` must outlive this.
    DeferredLinearBpe(const Vocabulary& vocabulary, std::size_t worth_bytes)
        : vocabulary_(vocabulary), worth_bytes_(worth_bytes) {}

    // Counts a part of so many bytes and returns the encoder: nullptr until it is built, and always where the
    // vocabulary does not fit it. When several threads find that it is due, one builds and the others wait.
    const LinearBpe* get_for(std::size_t bytes) {
        if (const LinearBpe* built = built_.load(std::memory_order_acquire)) return built;
        if (seen_.fetch_add(bytes, std::memory_order_relaxed) + bytes < worth_bytes_) return nullptr;
        std::call_once(once_, [this] {
            owned_ = LinearBpe::make(vocabulary_);
            built_.store(owned_.get(), std::memory_order_release);
        });
        return built_.load(std::memory_order_acquire);
    }

private:
    const Vocabulary& vocabulary_;
    const std::size_t worth_bytes_;
    std::atomic<std::size_t> seen_{0};
    std::once_flag once_;
    std::unique_ptr<const LinearBpe> owned_;
    std::atomic<const LinearBpe*> built_{nullptr};
};

}  // namespace qwenvl
