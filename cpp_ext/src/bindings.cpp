#include "qwenvl/bindings.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "qwenvl/instruction_set.hpp"

namespace py = pybind11;

namespace qwenvl {

std::string_view utf8_of(const py::str& text) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) throw py::error_already_set();
        PyErr_Clear();
        throw py::value_error(
            "the text holds a lone surrogate, which no character is; decode it with errors=\"replace\" first");
    }
    return {data, static_cast<std::size_t>(size)};
}

py::str to_str(std::string_view utf8) {
    PyObject* text = PyUnicode_DecodeUTF8(utf8.data(), static_cast<Py_ssize_t>(utf8.size()), "strict");
    if (text == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(text);
}

namespace {

std::vector<std::int64_t> ids_of_array(const py::array& array) {
    const char kind = array.dtype().kind();
    if (array.ndim() != 1 || (kind != 'i' && kind != 'u')) {
        throw py::type_error("token ids must be a one-dimensional array of integers");
    }
    const auto values = py::array_t < std::int64_t, py::array::c_style | py::array::forcecast > ::ensure(array);
    if (!values) throw py::error_already_set();
    return {values.data(), values.data() + values.size()};
}

}  // namespace

std::vector<std::int64_t> ids_of(const py::handle& ids) {
    if (py::isinstance<py::array>(ids)) return ids_of_array(py::reinterpret_borrow<py::array>(ids));
    const py::object fast =
        py::reinterpret_steal<py::object>(PySequence_Fast(ids.ptr(), "token ids must be a sequence"));
    if (!fast) throw py::error_already_set();
    const auto size = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(fast.ptr()));
    PyObject** const items = PySequence_Fast_ITEMS(fast.ptr());
    std::vector<std::int64_t> values(size);
    for (std::size_t i = 0; i < size; ++i) {
        values[i] = PyLong_AsLongLong(items[i]);
        if (values[i] == -1 && PyErr_Occurred()) throw py::error_already_set();
    }
    return values;
}

}  // namespace qwenvl

PYBIND11_MODULE(_core, module) {
    module.doc() = "Native core of Qwen-VL Edge. Use qwenvl_edge.tokenizer, .sampling and .image.";
    qwenvl::bind_tokenizer(module);
    qwenvl::bind_sampler(module);
    qwenvl::bind_image(module);
    module.def("kernel_variants", &qwenvl::kernel_variants);
    module.def("use_kernels", &qwenvl::use_kernels, py::arg("name"));
}
