// Bytes or wider units that grow at the end, never initialised and never shrunk.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <string_view>

namespace qwenvl {

template <typename Unit>
class UnitBuffer {
public:
    explicit UnitBuffer(std::size_t capacity) : capacity_(capacity), data_(new Unit[capacity]) {}

    std::basic_string_view<Unit> view() const { return {data_.get(), size_}; }

    // The end, behind which `size` units may be written; extend_to takes over what was.
    Unit* reserve(std::size_t size) {
        if (capacity_ - size_ < size) grow(size);
        return data_.get() + size_;
    }
    void extend_to(const Unit* end) { size_ = static_cast<std::size_t>(end - data_.get()); }

    void append(std::basic_string_view<Unit> units) {
        extend_to(std::copy(units.begin(), units.end(), reserve(units.size())));
    }

private:
    void grow(std::size_t wanted) {
        const std::size_t capacity = std::max(2 * capacity_, size_ + wanted);
        std::unique_ptr<Unit[]> data(new Unit[capacity]);
        std::copy(data_.get(), data_.get() + size_, data.get());
        data_ = std::move(data);
        capacity_ = capacity;
    }

    std::size_t size_ = 0, capacity_;
    std::unique_ptr<Unit[]> data_;
};

using ByteBuffer = UnitBuffer<char>;

}  // namespace qwenvl
