#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>

#include "image/bicubic.hpp"
#include "image/pixel_values.hpp"
#include "python/bindings.hpp"

namespace py = pybind11;

namespace qwenvl {
namespace {

std::string shape_of(const py::array& array) {
    std::string text = "[";
    for (py::ssize_t i = 0; i < array.ndim(); ++i) text += (i > 0 ? ", " : "") + std::to_string(array.shape(i));
    return text + "]";
}

Pixels nv12_of(const py::array& array) {
    if (array.ndim() != 2 || array.shape(0) % 3 != 0 || array.shape(1) % 2 != 0) {
        throw py::value_error("an NV12 picture is an array [3H/2, W] with even H and W, not " + shape_of(array));
    }
    return {static_cast<const std::uint8_t*>(array.data()),
            static_cast<std::size_t>(array.shape(0) / 3 * 2),
            static_cast<std::size_t>(array.shape(1)),
            array.strides(0),
            array.strides(1),
            0,
            Pixels::Format::kNv12};
}

Pixels interleaved_of(const py::array& array) {
    const py::ssize_t channels = array.ndim() == 3 ? array.shape(2) : 1;
    if ((array.ndim() != 2 && array.ndim() != 3) || (channels != 1 && channels != 3 && channels != 4)) {
        throw py::value_error("a picture is an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not " +
                              shape_of(array));
    }
    return {static_cast<const std::uint8_t*>(array.data()),
            static_cast<std::size_t>(array.shape(0)),
            static_cast<std::size_t>(array.shape(1)),
            array.strides(0),
            array.strides(1),
            channels == 1 ? 0 : array.strides(2)};
}

Pixels pixels_of(const py::array& array, const std::string& layout) {
    if (array.dtype().kind() != 'u' || array.itemsize() != 1) {
        throw py::value_error("a picture is an array of uint8, not " + std::string(py::str(array.dtype())));
    }
    if (layout != "rgb" && layout != "bgr" && layout != "nv12") {
        throw py::value_error("the layout \"" + layout + "\" is unknown; give \"rgb\", \"bgr\" or \"nv12\"");
    }
    const Pixels pixels = layout == "nv12" ? nv12_of(array) : interleaved_of(array);
    if (pixels.height == 0 || pixels.width == 0) throw py::value_error("the picture is empty, " + shape_of(array));
    return pixels;
}

py::array_t<float> make_pixel_values(const py::array& array, std::pair<py::ssize_t, py::ssize_t> size,
                                     const std::array<float, 3>& mean, const std::array<float, 3>& std,
                                     const std::string& layout) {
    const Pixels pixels = pixels_of(array, layout);
    if (size.first < 1 || size.second < 1) {
        throw py::value_error("cannot resize to " + std::to_string(size.first) + "x" + std::to_string(size.second) +
                              " pixels; both sides must be 1 or more");
    }
    py::array_t<float> values({py::ssize_t{3}, size.first, size.second});
    float* out = values.mutable_data();
    {
        py::gil_scoped_release release;
        pixel_values(pixels, layout == "bgr", {mean, std}, static_cast<std::size_t>(size.first),
                     static_cast<std::size_t>(size.second), out);
    }
    return values;
}

// Writes one frame's part of the patches [P, 3 * times * patch * patch] of a picture (both times) or clip (one time).
void write_patch_values(const py::array& array, py::array_t<float, py::array::c_style>& values, const PatchGrid& grid,
                        const std::array<float, 3>& mean, const std::array<float, 3>& std, const std::string& layout) {
    const Pixels pixels = pixels_of(array, layout);
    const auto patches = static_cast<py::ssize_t>(grid.rows * grid.columns);
    const auto size = static_cast<py::ssize_t>(3 * grid.times * grid.patch * grid.patch);
    if (!grid.valid() || values.ndim() != 2 || values.shape(0) != patches || values.shape(1) != size) {
        throw py::value_error("the patches do not belong to this grid: " + shape_of(values));
    }
    float* out = values.mutable_data();
    py::gil_scoped_release release;
    patch_values(pixels, layout == "bgr", {mean, std}, grid, out);
}

// The taps of every output pixel as arrays, padded with zeros to the widest, for resampling on another device.
py::tuple bicubic_axis(py::ssize_t input, py::ssize_t output) {
    if (input < 1 || output < 1) {
        throw py::value_error("cannot resample " + std::to_string(input) + " to " + std::to_string(output) +
                              " pixels; both must be 1 or more");
    }
    const BicubicAxis axis(static_cast<std::size_t>(input), static_cast<std::size_t>(output));
    const auto widest = static_cast<py::ssize_t>(axis.widest());
    py::array_t<std::int32_t> first(output), count(output), weights({output, widest});
    std::fill_n(weights.mutable_data(), weights.size(), 0);
    for (py::ssize_t i = 0; i < output; ++i) {
        const Taps taps = axis[static_cast<std::size_t>(i)];
        first.mutable_data()[i] = static_cast<std::int32_t>(taps.first);
        count.mutable_data()[i] = static_cast<std::int32_t>(taps.count);
        std::copy_n(taps.weights, taps.count, weights.mutable_data() + i * widest);
    }
    return py::make_tuple(first, count, weights);
}

}  // namespace

void bind_image(py::module_& module) {
    module.def("pixel_values", &make_pixel_values, py::arg("pixels").noconvert(), py::arg("size"), py::arg("mean"),
               py::arg("std"), py::arg("layout"));
    module.def(
        "write_patch_values",
        [](const py::array& array, py::array_t<float, py::array::c_style>& values,
           std::pair<std::size_t, std::size_t> grid, std::size_t patch, std::size_t merge, std::size_t times,
           std::pair<std::size_t, std::size_t> filled, const std::array<float, 3>& mean,
           const std::array<float, 3>& std, const std::string& layout) {
            write_patch_values(array, values,
                               {grid.first, grid.second, patch, merge, times, filled.first, filled.second}, mean, std,
                               layout);
        },
        py::arg("pixels").noconvert(), py::arg("values").noconvert(), py::arg("grid"), py::arg("patch"),
        py::arg("merge"), py::arg("times"), py::arg("filled"), py::arg("mean"), py::arg("std"), py::arg("layout"));
    module.def("bicubic_axis", &bicubic_axis, py::arg("input"), py::arg("output"));
}

}  // namespace qwenvl
