// Bytes that grow at the end, never initialised and never shrunk.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <string_view>

namespace qwenvl {

class ByteBuffer {
public:
    static constexpr std::size_t kChunk = 16;

    explicit ByteBuffer(std::size_t capacity) : capacity_(capacity + kChunk), data_(new char[capacity_]) {}

    std::string_view view() const { return {data_.get(), size_}; }

    // The first `size` < kChunk bytes of kChunk readable ones: a copy of fixed size, whose end the next one overwrites.
    void append_chunk(const void* chunk, std::size_t size) {
        if (capacity_ - size_ < kChunk) grow(kChunk);
        std::memcpy(data_.get() + size_, chunk, kChunk);
        size_ += size;
    }

    void append(std::string_view bytes) {
        if (capacity_ - size_ < bytes.size()) grow(bytes.size());
        std::memcpy(data_.get() + size_, bytes.data(), bytes.size());
        size_ += bytes.size();
    }

private:
    void grow(std::size_t wanted) {
        const std::size_t capacity = std::max(2 * capacity_, size_ + wanted);
        std::unique_ptr<char[]> data(new char[capacity]);
        std::memcpy(data.get(), data_.get(), size_);
        data_ = std::move(data);
        capacity_ = capacity;
    }

    std::size_t size_ = 0, capacity_;
    std::unique_ptr<char[]> data_;
};

}  // namespace qwenvl
