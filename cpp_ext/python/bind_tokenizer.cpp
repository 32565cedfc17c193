#include <pybind11/stl.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <optional>

#include "python/bindings.hpp"
#include "tokenizer/incremental_decoder.hpp"
#include "tokenizer/normal_form.hpp"
#include "tokenizer/tokenizer.hpp"

namespace py = pybind11;

namespace qwenvl {
namespace {

// None: every special token. A list: only those named, possibly none.
using Allowed = std::optional<std::vector<std::string>>;

constexpr std::int64_t kLargestId = 0x7FFFFFFF;  // of special tokens

class AllowedMatcher {
public:
    AllowedMatcher(const Tokenizer& tokenizer, const Allowed& allowed) : all_(tokenizer.special_tokens().all()) {
        if (!allowed) return;
        some_ = tokenizer.special_tokens().only(*allowed);
        use_all_ = false;
    }

    const SpecialMatcher& operator*() const { return use_all_ ? all_ : some_; }

private:
    const SpecialMatcher& all_;
    SpecialMatcher some_;
    bool use_all_ = true;
};

// A tokenizer and the Python ints of the ids that it has given out: making an int costs as much as finding the id. The
// GIL protects the ints.
class PyTokenizer {
public:
    explicit PyTokenizer(std::shared_ptr<const Tokenizer> tokenizer)
        : tokenizer_(std::move(tokenizer)),
          count_(tokenizer_->vocabulary().size()),
          ints_(static_cast<PyObject**>(std::calloc(count_, sizeof(PyObject*)))) {
        if (!ints_) throw std::bad_alloc();
    }
    PyTokenizer(const PyTokenizer&) = delete;
    PyTokenizer& operator=(const PyTokenizer&) = delete;
    ~PyTokenizer() {
        for (std::size_t i = 0; i < count_ && given_ > 0; ++i) {
            if (ints_[i] == nullptr) continue;
            Py_DECREF(ints_[i]);
            --given_;
        }
    }

    const Tokenizer& operator*() const { return *tokenizer_; }
    const Tokenizer* operator->() const { return tokenizer_.get(); }
    const std::shared_ptr<const Tokenizer>& shared() const { return tokenizer_; }

    py::list to_list(const std::vector<TokenId>& ids) {
        constexpr std::size_t ahead = 12;  // ints lie anywhere in memory: the pointer is fetched first, then the int
        py::list list(ids.size());
        for (std::size_t i = 0; i < ids.size(); ++i) {
            if (i + 2 * ahead < ids.size()) {
                __builtin_prefetch(place_of(ids[i + 2 * ahead]));
                __builtin_prefetch(*place_of(ids[i + ahead]));
            }
            PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), new_int(ids[i]));
        }
        return list;
    }

private:
    struct Free {
        void operator()(PyObject** ints) const { std::free(ints); }
    };

    PyObject** place_of(TokenId id) const { return &ints_[id < count_ ? id : 0]; }

    // A new reference.
    PyObject* new_int(TokenId id) {
        if (id >= count_) return make_int(id);
        if (ints_[id] == nullptr) {
            ints_[id] = make_int(id);
            ++given_;
        }
        Py_INCREF(ints_[id]);
        return ints_[id];
    }

    static PyObject* make_int(TokenId id) {
        PyObject* const made = PyLong_FromUnsignedLong(id);
        if (made == nullptr) throw py::error_already_set();
        return made;
    }

    std::shared_ptr<const Tokenizer> tokenizer_;
    std::size_t count_, given_ = 0;
    std::unique_ptr<PyObject*[], Free> ints_;  // by id; zeroed by the system, so only pages in use take memory
};

std::unique_ptr<PyTokenizer> make_tokenizer(const py::buffer& file,
                                            const std::map<std::string, std::int64_t>& special,
                                            std::size_t linear_after) {
    const py::buffer_info info = file.request();
    const std::string_view bytes(static_cast<const char*>(info.ptr),
                                 static_cast<std::size_t>(info.size * info.itemsize));
    std::vector<SpecialToken> tokens;
    for (const auto& [text, id] : special) {
        if (id < 0 || id > kLargestId) {
            throw py::value_error("special token " + text + " has id " + std::to_string(id) +
                                  "; use ids from 0 to 2**31-1");
        }
        tokens.push_back({text, static_cast<TokenId>(id)});
    }
    std::shared_ptr<const Tokenizer> tokenizer;
    {
        py::gil_scoped_release release;
        tokenizer = std::make_shared<const Tokenizer>(bytes, std::move(tokens), linear_after);
    }
    return std::make_unique<PyTokenizer>(std::move(tokenizer));
}

py::list encode(PyTokenizer& tokenizer, const py::str& text, const Allowed& allowed) {
    const AllowedMatcher matcher(*tokenizer, allowed);
    const std::string_view utf8 = utf8_of(text);
    std::vector<TokenId> ids;
    {
        const py::gil_scoped_release release;
        ids.reserve(utf8.size() / 4 + 16);  // about what English takes
        tokenizer->encode(utf8, *matcher, ids);
    }
    return tokenizer.to_list(ids);
}

std::size_t count(const PyTokenizer& tokenizer, const py::str& text, const Allowed& allowed) {
    const AllowedMatcher matcher(*tokenizer, allowed);
    const std::string_view utf8 = utf8_of(text);
    const py::gil_scoped_release release;
    return tokenizer->count(utf8, *matcher);
}

std::string bytes_of(const PyTokenizer& tokenizer, const py::handle& ids) {
    std::vector<std::int64_t> values;
    read_ids(ids, values);
    return tokenizer->decode(values);
}

py::str decode(const PyTokenizer& tokenizer, const py::handle& ids, const std::string& errors) {
    return decode_utf8_text(bytes_of(tokenizer, ids), errors.c_str());
}

py::bytes decode_bytes(const PyTokenizer& tokenizer, const py::handle& ids) { return bytes_of(tokenizer, ids); }

// True only for text in normal form C; all of Latin-1 is.
bool text_is_surely_normal(const py::str& text) {
    if (PyUnicode_READY(text.ptr()) != 0) throw py::error_already_set();
    if (PyUnicode_KIND(text.ptr()) == PyUnicode_1BYTE_KIND) return true;
    return PyUnicode_KIND(text.ptr()) == PyUnicode_2BYTE_KIND &&
           surely_normal(PyUnicode_2BYTE_DATA(text.ptr()), static_cast<std::size_t>(PyUnicode_GET_LENGTH(text.ptr())));
}

void bind_incremental_decoder(py::module_& module) {
    py::class_<IncrementalDecoder>(module, "IncrementalDecoder")
        .def(py::init([](const PyTokenizer& tokenizer, std::vector<std::string> stop) {
                 return std::make_unique<IncrementalDecoder>(tokenizer.shared(), std::move(stop));
             }),
             py::arg("tokenizer"), py::arg("stop") = std::vector<std::string>{})
        .def(
            "push", [](IncrementalDecoder& self, std::int64_t id) { return to_str(self.push(id)); }, py::arg("id"))
        .def("finish", [](IncrementalDecoder& self) { return to_str(self.finish()); })
        .def_property_readonly("stopped", [](const IncrementalDecoder& self) -> py::object {
            return self.stopped() ? py::object(to_str(*self.stopped())) : py::object(py::none());
        });
}

}  // namespace

void bind_tokenizer(py::module_& module) {
    py::class_<PyTokenizer>(module, "Tokenizer")
        .def(py::init(&make_tokenizer), py::arg("vocabulary"), py::arg("special_tokens"),
             py::arg("linear_after") = DeferredLinearBpe::kWorthBytes)
        .def("encode", &encode, py::arg("text"), py::arg("allowed"))
        .def("count", &count, py::arg("text"), py::arg("allowed"))
        .def("decode", &decode, py::arg("ids"), py::arg("errors"))
        .def("decode_bytes", &decode_bytes, py::arg("ids"))
        .def_property_readonly("rank_count", [](const PyTokenizer& self) { return self->vocabulary().size(); });
    bind_incremental_decoder(module);
    module.def("surely_normal", &text_is_surely_normal, py::arg("text"));
}

}  // namespace qwenvl
