#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include "qwenvl/bindings.hpp"
#include "qwenvl/incremental_decoder.hpp"
#include "qwenvl/tokenizer.hpp"

namespace py = pybind11;

namespace qwenvl {
namespace {

// None: every special token; a list: only those, possibly none.
using Allowed = std::optional<std::vector<std::string>>;

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

// A tokenizer and one Python int for every id that was ever given out: making ints costs as much as finding the ids.
class PyTokenizer {
public:
    explicit PyTokenizer(std::shared_ptr<const Tokenizer> tokenizer)
        : tokenizer_(std::move(tokenizer)), ints_(tokenizer_->vocabulary().size()) {}

    const Tokenizer& operator*() const { return *tokenizer_; }
    const Tokenizer* operator->() const { return tokenizer_.get(); }
    const std::shared_ptr<const Tokenizer>& shared() const { return tokenizer_; }

    py::list to_list(const std::vector<TokenId>& ids) {
        py::list list(ids.size());
        for (std::size_t i = 0; i < ids.size(); ++i) {
            PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), to_int(ids[i]).release().ptr());
        }
        return list;
    }

private:
    py::object to_int(TokenId id) {
        if (id >= ints_.size()) return py::int_(id);
        if (!ints_[id]) ints_[id] = py::int_(id);
        return ints_[id];
    }

    std::shared_ptr<const Tokenizer> tokenizer_;
    std::vector<py::object> ints_;
};

std::unique_ptr<PyTokenizer> make_tokenizer(const py::buffer& file,
                                            const std::map<std::string, std::int64_t>& special) {
    const py::buffer_info info = file.request();
    const std::string_view bytes(static_cast<const char*>(info.ptr),
                                 static_cast<std::size_t>(info.size * info.itemsize));
    std::vector<SpecialToken> tokens;
    for (const auto& [text, id] : special) {
        if (id < 0 || id >= static_cast<std::int64_t>(kNoToken)) {
            throw py::value_error("special token " + text + " has id " + std::to_string(id) +
                                  "; use ids from 0 to 2**32-2");
        }
        tokens.push_back({text, static_cast<TokenId>(id)});
    }
    std::shared_ptr<const Tokenizer> tokenizer;
    {
        py::gil_scoped_release release;
        tokenizer = std::make_shared<const Tokenizer>(bytes, std::move(tokens));
    }
    return std::make_unique<PyTokenizer>(std::move(tokenizer));
}

py::list encode(PyTokenizer& tokenizer, const py::str& text, const Allowed& allowed) {
    const AllowedMatcher matcher(*tokenizer, allowed);
    const std::string_view utf8 = utf8_of(text);
    std::vector<TokenId> ids;
    {
        py::gil_scoped_release release;
        tokenizer->encode(utf8, *matcher, ids);
    }
    return tokenizer.to_list(ids);
}

py::list encode_batch(PyTokenizer& tokenizer, const std::vector<py::str>& texts, const Allowed& allowed, int threads) {
    const AllowedMatcher matcher(*tokenizer, allowed);
    std::vector<std::string_view> utf8;
    for (const py::str& text : texts) utf8.push_back(utf8_of(text));
    std::vector<std::vector<TokenId>> ids(texts.size());
    {
        py::gil_scoped_release release;
        std::atomic<std::size_t> next{0};
        const auto work = [&] {
            for (std::size_t i = next++; i < utf8.size(); i = next++) tokenizer->encode(utf8[i], *matcher, ids[i]);
        };
        std::vector<std::thread> helpers;
        const std::size_t wanted = std::min(static_cast<std::size_t>(std::max(threads, 1)), texts.size());
        for (std::size_t i = 1; i < wanted; ++i) helpers.emplace_back(work);
        work();
        for (std::thread& helper : helpers) helper.join();
    }
    py::list result(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) result[i] = tokenizer.to_list(ids[i]);
    return result;
}

std::size_t count(const PyTokenizer& tokenizer, const py::str& text, const Allowed& allowed) {
    const AllowedMatcher matcher(*tokenizer, allowed);
    const std::string_view utf8 = utf8_of(text);
    py::gil_scoped_release release;
    return tokenizer->count(utf8, *matcher);
}

py::str truncate(const PyTokenizer& tokenizer, const py::str& text, std::int64_t limit, const Allowed& allowed) {
    if (limit < 0) throw py::value_error("cannot truncate to " + std::to_string(limit) + " tokens; use 0 or more");
    const AllowedMatcher matcher(*tokenizer, allowed);
    const std::string_view utf8 = utf8_of(text);
    std::size_t size = 0;
    {
        py::gil_scoped_release release;
        size = tokenizer->truncate(utf8, *matcher, static_cast<std::size_t>(limit));
    }
    return size == utf8.size() ? text : to_str(utf8.substr(0, size));
}

std::string decode_bytes(const PyTokenizer& tokenizer, const py::handle& ids) {
    std::vector<std::int64_t> values;
    read_ids(ids, values);
    return tokenizer->decode(values);
}

py::str decode(const PyTokenizer& tokenizer, const py::handle& ids, const std::string& errors) {
    const std::string bytes = decode_bytes(tokenizer, ids);
    PyObject* text = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), errors.c_str());
    if (text == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(text);
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
        .def(py::init(&make_tokenizer), py::arg("vocabulary"), py::arg("special_tokens"))
        .def("encode", &encode, py::arg("text"), py::arg("allowed"))
        .def("encode_batch", &encode_batch, py::arg("texts"), py::arg("allowed"), py::arg("threads"))
        .def("count", &count, py::arg("text"), py::arg("allowed"))
        .def("truncate", &truncate, py::arg("text"), py::arg("limit"), py::arg("allowed"))
        .def("decode", &decode, py::arg("ids"), py::arg("errors"))
        .def(
            "decode_bytes",
            [](const PyTokenizer& self, const py::handle& ids) { return py::bytes(decode_bytes(self, ids)); },
            py::arg("ids"))
        .def_property_readonly("rank_count", [](const PyTokenizer& self) { return self->vocabulary().size(); });
    bind_incremental_decoder(module);
}

}  // namespace qwenvl
