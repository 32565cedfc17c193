// Units that grow at the end, in the place of a Python str that they become without a copy.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <string_view>
#include <utility>

namespace qwenvl {

// Acts like a UnitBuffer of char, char16_t or char32_t. Needs the GIL.
template <typename Unit>
class StrBuffer {
public:
    explicit StrBuffer(std::size_t capacity)
        : capacity_(std::max(capacity, kSmallest)), text_(PyUnicode_New(static_cast<Py_ssize_t>(capacity_), kLargest)) {
        if (text_ == nullptr) throw pybind11::error_already_set();
    }
    StrBuffer(const StrBuffer&) = delete;
    StrBuffer& operator=(const StrBuffer&) = delete;
    ~StrBuffer() { Py_XDECREF(text_); }

    std::basic_string_view<Unit> view() const { return {data(), size_}; }

    Unit* reserve(std::size_t size) {
        if (capacity_ - size_ < size) resize(std::max(2 * capacity_, size_ + size));
        return data() + size_;
    }
    void extend_to(const Unit* end) { size_ = static_cast<std::size_t>(end - data()); }

    void append(std::basic_string_view<Unit> units) {
        extend_to(std::copy(units.begin(), units.end(), reserve(units.size())));
    }

    // No narrower form of str may hold all of the units. Nothing else may be done with the buffer then.
    pybind11::str take() {
        resize(size_);
        return pybind11::reinterpret_steal<pybind11::str>(std::exchange(text_, nullptr));
    }

private:
    static constexpr Py_UCS4 kLargest = sizeof(Unit) == 1 ? 0x7F : sizeof(Unit) == 2 ? 0xFFFF : 0x10FFFF;
    static constexpr std::size_t kSmallest = 32;  // more than the strs that Python shares

    Unit* data() const { return static_cast<Unit*>(PyUnicode_DATA(text_)); }
    void resize(std::size_t capacity) {
        if (PyUnicode_Resize(&text_, static_cast<Py_ssize_t>(capacity)) != 0) throw pybind11::error_already_set();
        capacity_ = capacity;
    }

    std::size_t size_ = 0, capacity_;
    PyObject* text_;
};

}  // namespace qwenvl
