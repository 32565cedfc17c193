// Bytes that grow at the end, never initialised and never shrunk.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <string_view>

namespace qwenvl {

class ByteBuffer {
public:
    explicit ByteBuffer(std::size_t capacity) : capacity_(capacity), data_(new char[capacity]) {}

    std::string_view view() const { return {data_.get(), size_}; }

    // The end, behind which `size` bytes may be written; extend_to takes over what was.
    char* reserve(std::size_t size) {
        if (capacity_ - size_ < size) grow(size);
        return data_.get() + size_;
    }
    void extend_to(const char* end) { size_ = static_cast<std::size_t>(end - data_.get()); }

    void append(std::string_view bytes) {
        std::memcpy(reserve(bytes.size()), bytes.data(), bytes.size());
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
