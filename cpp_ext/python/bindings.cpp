#include "python/bindings.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "matmul/block_matmul.hpp"
#include "python/python_ints.hpp"
#include "simd/instruction_set.hpp"
#include "simd/memory_reader.hpp"

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

py::str to_str(std::string_view utf8) { return decode_utf8_text(utf8, "strict"); }

py::str decode_utf8_text(std::string_view bytes, const char* errors) {
    PyObject* const text = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), errors);
    if (text == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::str>(text);
}

namespace {

void read_array(const py::array& array, std::vector<std::int64_t>& out) {
    const char kind = array.dtype().kind();
    if (array.ndim() != 1 || (kind != 'i' && kind != 'u')) {
        throw py::type_error("token ids must be a one-dimensional array of integers");
    }
    const auto values = py::array_t < std::int64_t, py::array::c_style | py::array::forcecast > ::ensure(array);
    if (!values) throw py::error_already_set();
    out.assign(values.data(), values.data() + values.size());
}

}  // namespace

void read_ids(const py::handle& ids, std::vector<std::int64_t>& out) {
    if (py::isinstance<py::array>(ids)) return read_array(py::reinterpret_borrow<py::array>(ids), out);
    const py::object fast =
        py::reinterpret_steal<py::object>(PySequence_Fast(ids.ptr(), "token ids must be a sequence"));
    if (!fast) throw py::error_already_set();
    out.resize(static_cast<std::size_t>(PySequence_Fast_GET_SIZE(fast.ptr())));
    for (std::size_t i = 0; i < out.size(); ++i) {
        // The size is read each time: an item's __index__ is Python code and may change the list.
        if (static_cast<std::size_t>(PySequence_Fast_GET_SIZE(fast.ptr())) <= i) {
            throw py::value_error("the token ids changed while they were read");
        }
        PyObject* const item = PySequence_Fast_GET_ITEM(fast.ptr(), static_cast<Py_ssize_t>(i));
        if ((out[i] = small_int(item)) >= 0) continue;
        out[i] = PyLong_AsLongLong(item);
        if (out[i] == -1 && PyErr_Occurred()) throw py::error_already_set();
    }
}

}  // namespace qwenvl

PYBIND11_MODULE(_core, module) {
    module.doc() = "Native core of Qwen-VL Edge. Use qwenvl_edge.inputs and qwenvl_edge.decoding.";
    qwenvl::bind_tokenizer(module);
    qwenvl::bind_sampler(module);
    qwenvl::bind_image(module);
    module.def("kernel_variants", &qwenvl::kernel_variants);
    module.def("use_kernels", &qwenvl::use_kernels, py::arg("name"));
    module.def("multiply_variants", &qwenvl::multiply_variants);
    module.def("multiply_variant", &qwenvl::multiply_variant);
    module.def("use_multiply", &qwenvl::use_multiply, py::arg("name"));
    py::class_<qwenvl::MemoryReader>(module, "MemoryReader")
        .def(py::init<std::size_t, unsigned>(), py::arg("bytes"), py::arg("threads"))
        .def_property_readonly("bytes", &qwenvl::MemoryReader::bytes)
        .def("gb_s", &qwenvl::MemoryReader::gb_s, py::arg("streams"), py::arg("ahead"),
             py::call_guard<py::gil_scoped_release>())
        .def("best_gb_s", &qwenvl::MemoryReader::best_gb_s, py::arg("repeats"),
             py::call_guard<py::gil_scoped_release>());
}
