#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>

#include "python/bindings.hpp"
#include "python/python_ints.hpp"
#include "python/str_buffer.hpp"
#include "tokenizer/incremental_decoder.hpp"
#include "tokenizer/normal_form.hpp"
#include "tokenizer/parallel.hpp"
#include "tokenizer/text_decoder.hpp"
#include "tokenizer/tokenizer.hpp"

namespace py = pybind11;

namespace qwenvl {
namespace {

// None: every special token; a list: only those, possibly none.
using Allowed = std::optional<std::vector<std::string>>;

constexpr std::int64_t kLargestId = 0x7FFFFFFF;  // arrays of ids are int32

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
        constexpr std::size_t ahead = 12;  // ints lie anywhere: first their place is fetched, then they themselves
        py::list list(ids.size());
        for (std::size_t i = 0; i < ids.size(); ++i) {
            if (i + 2 * ahead < ids.size()) {
                __builtin_prefetch(place_of(ids[i + 2 * ahead]));
                __builtin_prefetch(place_of(ids[i + ahead])->ptr());
            }
            PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), to_int(ids[i]).release().ptr());
        }
        return list;
    }

private:
    py::object* place_of(TokenId id) { return &ints_[id < ints_.size() ? id : 0]; }

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
        if (id < 0 || id > kLargestId) {
            throw py::value_error("special token " + text + " has id " + std::to_string(id) +
                                  "; use ids from 0 to 2**31-1");
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

std::vector<TokenId> encode_text(const PyTokenizer& tokenizer, const py::str& text, const Allowed& allowed) {
    const AllowedMatcher matcher(*tokenizer, allowed);
    const std::string_view utf8 = utf8_of(text);
    const py::gil_scoped_release release;
    std::vector<TokenId> ids;
    ids.reserve(utf8.size() / 4 + 16);  // about what English takes
    tokenizer->encode(utf8, *matcher, ids);
    return ids;
}

std::vector<std::vector<TokenId>> encode_texts(const PyTokenizer& tokenizer, const std::vector<py::str>& texts,
                                               const Allowed& allowed, int threads) {
    const AllowedMatcher matcher(*tokenizer, allowed);
    std::vector<std::string_view> utf8;
    for (const py::str& text : texts) utf8.push_back(utf8_of(text));
    const py::gil_scoped_release release;
    std::vector<std::vector<TokenId>> ids(texts.size());
    parallel_for(ids.size(), static_cast<std::size_t>(std::max(threads, 1)), [&](std::size_t i) {
        ids[i].reserve(utf8[i].size() / 4 + 16);
        tokenizer->encode(utf8[i], *matcher, ids[i]);
    });
    return ids;
}

py::list encode(PyTokenizer& tokenizer, const py::str& text, const Allowed& allowed) {
    return tokenizer.to_list(encode_text(tokenizer, text, allowed));
}

py::array_t<std::int32_t> encode_array(const PyTokenizer& tokenizer, const py::str& text, const Allowed& allowed) {
    const std::vector<TokenId> ids = encode_text(tokenizer, text, allowed);
    py::array_t<std::int32_t> array(static_cast<py::ssize_t>(ids.size()));
    std::copy(ids.begin(), ids.end(), array.mutable_data());
    return array;
}

py::list encode_batch(PyTokenizer& tokenizer, const std::vector<py::str>& texts, const Allowed& allowed, int threads) {
    const std::vector<std::vector<TokenId>> ids = encode_texts(tokenizer, texts, allowed, threads);
    py::list result(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) result[i] = tokenizer.to_list(ids[i]);
    return result;
}

py::tuple encode_batch_array(const PyTokenizer& tokenizer, const std::vector<py::str>& texts, const Allowed& allowed,
                             int threads) {
    const std::vector<std::vector<TokenId>> ids = encode_texts(tokenizer, texts, allowed, threads);
    py::array_t<std::int64_t> offsets(static_cast<py::ssize_t>(ids.size() + 1));
    std::int64_t total = offsets.mutable_data()[0] = 0;
    for (std::size_t i = 0; i < ids.size(); ++i) {
        offsets.mutable_data()[i + 1] = total += static_cast<std::int64_t>(ids[i].size());
    }
    py::array_t<std::int32_t> all(total);
    std::int32_t* out = all.mutable_data();
    for (const std::vector<TokenId>& each : ids) out = std::copy(each.begin(), each.end(), out);
    return py::make_tuple(all, offsets);
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

// Items of a list or tuple, read without a function call; what is no small int reads as -1.
class SmallIds {
public:
    explicit SmallIds(const py::handle& ids) {
        if (!PyList_CheckExact(ids.ptr()) && !PyTuple_CheckExact(ids.ptr())) return;
        items_ = PySequence_Fast_ITEMS(ids.ptr());
        size_ = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(ids.ptr()));
        known_ = true;
    }

    bool known() const { return known_; }
    std::size_t size() const { return size_; }
    std::int64_t operator()(std::size_t i) const {
        constexpr std::size_t ahead = 24;
        __builtin_prefetch(items_[std::min(i + ahead, size_ - 1)]);
        return small_int(items_[i]);
    }

private:
    PyObject** items_ = nullptr;
    std::size_t size_ = 0;
    bool known_ = false;
};

// use(count, id_at) with the ids: as they lie if they are small ints, and where it then gives nothing because some are
// not, as a copy with every value. Throws for negative ones.
template <typename Use>
auto with_ids(const Tokenizer& tokenizer, const py::handle& ids, Use use) {
    const SmallIds small(ids);
    if (small.known()) {
        if (auto result = use(small.size(), small)) return *std::move(result);
    }
    std::vector<std::int64_t> values;
    read_ids(ids, values);
    for (const std::int64_t id : values) {
        if (id < 0) tokenizer.token_bytes(id);  // throws: it has none
    }
    return *use(values.size(), [&](std::size_t i) { return values[i]; });
}

// Nothing where an id is negative.
template <typename IdAt>
std::optional<ByteBuffer> bytes_of(const Tokenizer& tokenizer, std::size_t count, IdAt id_at) {
    constexpr std::size_t likely_bytes = 6;  // of a token, enough for most texts
    std::optional<ByteBuffer> out(count * likely_bytes);
    if (tokenizer.append_bytes(count, id_at, *out) != count) out.reset();
    return out;
}

// A str must have the narrowest of its forms that holds its characters.
py::str take_text(TextDecoder<StrBuffer>& decoder) {
    if (decoder.four()) return decoder.four()->take();
    if (!decoder.two()) return decoder.ascii()->take();
    const std::u16string_view text = decoder.two()->view();
    if (std::any_of(text.begin(), text.end(), [](char16_t unit) { return unit > 0xFF; })) return decoder.two()->take();
    PyObject* const latin = PyUnicode_New(static_cast<Py_ssize_t>(text.size()), 0xFF);
    if (latin == nullptr) throw py::error_already_set();
    std::copy(text.begin(), text.end(), PyUnicode_1BYTE_DATA(latin));
    return py::reinterpret_steal<py::str>(latin);
}

py::str decode(const PyTokenizer& tokenizer, const py::handle& ids, const std::string& errors) {
    return with_ids(*tokenizer, ids, [&](std::size_t count, const auto& id_at) -> std::optional<py::str> {
        using Decoder = TextDecoder<StrBuffer>;
        Decoder decoder(*tokenizer, count);
        const Decoder::Result result = decoder.run(id_at);
        if (result == Decoder::Result::kText) return take_text(decoder);
        if (result == Decoder::Result::kNegativeId) return std::nullopt;
        const std::optional<ByteBuffer> bytes = bytes_of(*tokenizer, count, id_at);
        return bytes ? std::optional(decode_utf8_text(bytes->view(), errors.c_str())) : std::nullopt;
    });
}

py::bytes decode_bytes(const PyTokenizer& tokenizer, const py::handle& ids) {
    const ByteBuffer bytes = with_ids(
        *tokenizer, ids, [&](std::size_t count, const auto& id_at) { return bytes_of(*tokenizer, count, id_at); });
    return py::bytes(bytes.view().data(), bytes.view().size());
}

// All of Latin-1 is in normal form C.
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
        .def(py::init(&make_tokenizer), py::arg("vocabulary"), py::arg("special_tokens"))
        .def("encode", &encode, py::arg("text"), py::arg("allowed"))
        .def("encode_array", &encode_array, py::arg("text"), py::arg("allowed"))
        .def("encode_batch", &encode_batch, py::arg("texts"), py::arg("allowed"), py::arg("threads"))
        .def("encode_batch_array", &encode_batch_array, py::arg("texts"), py::arg("allowed"), py::arg("threads"))
        .def("count", &count, py::arg("text"), py::arg("allowed"))
        .def("truncate", &truncate, py::arg("text"), py::arg("limit"), py::arg("allowed"))
        .def("decode", &decode, py::arg("ids"), py::arg("errors"))
        .def("decode_bytes", &decode_bytes, py::arg("ids"))
        .def_property_readonly("rank_count", [](const PyTokenizer& self) { return self->vocabulary().size(); });
    bind_incremental_decoder(module);
    module.def("surely_normal", &text_is_surely_normal, py::arg("text"));
}

}  // namespace qwenvl
