// Functions that the binding files share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string_view>
#include <vector>

namespace qwenvl {

// UTF-8 of a Python str, valid as long as `text` lives. Throws ValueError for lone surrogates.
std::string_view utf8_of(const pybind11::str& text);

// Token ids of a list, tuple or one-dimensional integer array, into `out`; others raise TypeError.
void read_ids(const pybind11::handle& ids, std::vector<std::int64_t>& out);

pybind11::str to_str(std::string_view utf8);

// bytes.decode("utf-8", errors)
pybind11::str decode_utf8_text(std::string_view bytes, const char* errors);

void bind_tokenizer(pybind11::module_& module);
void bind_sampler(pybind11::module_& module);
void bind_image(pybind11::module_& module);

}  // namespace qwenvl
