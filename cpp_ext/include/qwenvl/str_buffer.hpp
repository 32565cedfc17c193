// Bytes that grow at the end, in the place of a Python str that they become without a copy where they are ASCII.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "qwenvl/bindings.hpp"
#include "qwenvl/utf8_text.hpp"

namespace qwenvl {

// Acts like a ByteBuffer. Needs the GIL.
class StrBuffer {
public:
    explicit StrBuffer(std::size_t capacity)
        : capacity_(std::max(capacity, kSmallest)), text_(PyUnicode_New(static_cast<Py_ssize_t>(capacity_), 0x7F)) {
        if (text_ == nullptr) throw pybind11::error_already_set();
    }
    StrBuffer(StrBuffer&& other) noexcept
        : size_(other.size_), capacity_(other.capacity_), text_(std::exchange(other.text_, nullptr)) {}
    StrBuffer(const StrBuffer&) = delete;
    ~StrBuffer() { Py_XDECREF(text_); }

    std::string_view view() const { return {data(), size_}; }

    char* reserve(std::size_t size) {
        if (capacity_ - size_ < size) resize(std::max(2 * capacity_, size_ + size));
        return data() + size_;
    }
    void extend_to(const char* end) { size_ = static_cast<std::size_t>(end - data()); }

    void append(std::string_view bytes) {
        std::memcpy(reserve(bytes.size()), bytes.data(), bytes.size());
        size_ += bytes.size();
    }

    // bytes.decode("utf-8", errors). Nothing else may be done with the buffer then.
    pybind11::str to_str(const char* errors) {
        if (summarize_utf8(view()).largest_byte >= 0x80) return decode_utf8_text(view(), errors);
        resize(size_);
        return pybind11::reinterpret_steal<pybind11::str>(std::exchange(text_, nullptr));
    }

private:
    static constexpr std::size_t kSmallest = 32;  // more than the strs that Python shares

    char* data() const { return static_cast<char*>(PyUnicode_DATA(text_)); }
    void resize(std::size_t capacity) {
        if (PyUnicode_Resize(&text_, static_cast<Py_ssize_t>(capacity)) != 0) throw pybind11::error_already_set();
        capacity_ = capacity;
    }

    std::size_t size_ = 0, capacity_;
    PyObject* text_;
};

}  // namespace qwenvl
