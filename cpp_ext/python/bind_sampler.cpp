#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "python/bindings.hpp"
#include "sampler/logits_row.hpp"
#include "sampler/sampler.hpp"

namespace py = pybind11;

namespace qwenvl {
namespace {

using MaskArray = py::array_t<bool, py::array::c_style>;
using Mask = std::optional<std::variant<py::bytes, MaskArray>>;

// The entries of a mask, one per logit.
const std::uint8_t* mask_data(const Mask& mask, std::size_t size) {
    if (!mask) return nullptr;
    const void* data = nullptr;
    py::ssize_t length = -1;
    if (const auto* array = std::get_if<MaskArray>(&*mask)) {
        data = array->data();
        if (array->ndim() == 1) length = array->size();
    } else {
        const py::bytes& entries = std::get<py::bytes>(*mask);
        data = PyBytes_AS_STRING(entries.ptr());
        length = PyBytes_GET_SIZE(entries.ptr());
    }
    if (length != static_cast<py::ssize_t>(size)) {
        throw py::value_error("the mask of allowed ids needs " + std::to_string(size) +
                              " entries, one for each logit");
    }
    return static_cast<const std::uint8_t*>(data);
}

// NumPy itself has no bfloat16. Accepted are ml_dtypes' type and two-byte records with the one field "bfloat16".
bool is_bfloat16(const py::dtype& dtype) {
    if (dtype.kind() != 'V' || dtype.itemsize() != 2) return false;
    const py::object name = dtype.attr("name"), fields = dtype.attr("names");
    return name.equal(py::str("bfloat16")) || fields.equal(py::make_tuple(py::str("bfloat16")));
}

FloatType float_type_of(const py::array& logits) {
    const py::dtype dtype = logits.dtype();
    if (dtype.attr("isnative").cast<bool>()) {
        if (dtype.kind() == 'f' && dtype.itemsize() == 4) return FloatType::kFloat32;
        if (dtype.kind() == 'f' && dtype.itemsize() == 2) return FloatType::kFloat16;
        if (is_bfloat16(dtype)) return FloatType::kBFloat16;
    }
    throw py::type_error("logits are an array of " + std::string(py::str(dtype)) +
                         "; give float32, float16 or bfloat16");
}

LogitsRow row_of(const py::array& logits) {
    const FloatType type = float_type_of(logits);
    if (logits.ndim() != 1) throw py::value_error("logits must be one row [V]; index the batch first");
    return {logits.data(), static_cast<std::size_t>(logits.size()), logits.strides(0), type};
}

// A sampler for several threads: one at a time uses its buffers.
class SharedSampler {
    template <typename Act>
    auto alone(Act act) {
        py::gil_scoped_release release;
        const std::lock_guard<std::mutex> lock(mutex_);
        return act();
    }

public:
    explicit SharedSampler(SamplingParams params) : sampler_(std::move(params)) {}

    template <typename Use>
    auto with(const py::array& logits, const py::handle& previous, std::size_t prompt_size,
              const Mask& allowed, Use use) {
        const LogitsRow row = row_of(logits);
        std::vector<std::int64_t> ids = std::exchange(spare_ids_, {});
        ids.clear();
        if (!previous.is_none()) read_ids(previous, ids);
        const StepContext step{ids.data(), ids.size(), prompt_size, mask_data(allowed, row.size)};
        auto result = alone([&] { return use(sampler_, reader_.read(row), row.size, step); });
        spare_ids_ = std::move(ids);
        return result;
    }

    template <typename Use>
    auto with(const py::array& logits, Use use) {
        const LogitsRow row = row_of(logits);
        return alone([&] { return use(sampler_, reader_.read(row), row.size); });
    }

private:
    Sampler sampler_;
    LogitsReader reader_;
    std::mutex mutex_;
    std::vector<std::int64_t> spare_ids_;  // memory for a step's ids that one caller takes; the GIL protects it
};

std::uint32_t sample(SharedSampler& self, const py::array& logits, const py::handle& previous, std::size_t prompt_size,
                     const Mask& allowed) {
    return self.with(logits, previous, prompt_size, allowed,
                     [](Sampler& sampler, const float* row, std::size_t size, const StepContext& step) {
                         return sampler.sample(row, size, step);
                     });
}

py::tuple distribution(SharedSampler& self, const py::array& logits, const py::handle& previous,
                       std::size_t prompt_size, const Mask& allowed) {
    double total = 0;
    const std::vector<Candidate> kept =
        self.with(logits, previous, prompt_size, allowed,
                  [&](Sampler& sampler, const float* row, std::size_t size, const StepContext& step) {
                      return std::vector<Candidate>(sampler.distribution(row, size, step, total));
                  });
    py::array_t<std::int64_t> ids(static_cast<py::ssize_t>(kept.size()));
    py::array_t<double> probabilities(static_cast<py::ssize_t>(kept.size()));
    for (std::size_t i = 0; i < kept.size(); ++i) {
        ids.mutable_data()[i] = kept[i].id;
        probabilities.mutable_data()[i] = static_cast<double>(kept[i].weight) / total;
    }
    return py::make_tuple(ids, probabilities);
}

double log_prob(SharedSampler& self, const py::array& logits, std::size_t id) {
    if (logits.ndim() == 1 && id >= static_cast<std::size_t>(logits.size())) {
        throw py::value_error("token id " + std::to_string(id) + " is outside the row of " +
                              std::to_string(logits.size()) + " logits");
    }
    return self.with(logits, [&](Sampler& sampler, const float* row, std::size_t size) {
        return sampler.log_prob(row, size, static_cast<std::uint32_t>(id)).log_prob;
    });
}

std::vector<std::pair<std::uint32_t, double>> top_log_probs(SharedSampler& self, const py::array& logits,
                                                            std::size_t count) {
    const auto top = self.with(logits, [&](Sampler& sampler, const float* row, std::size_t size) {
        return sampler.top_log_probs(row, size, count);
    });
    std::vector<std::pair<std::uint32_t, double>> pairs;
    for (const TokenLogProb& entry : top) pairs.emplace_back(entry.id, entry.log_prob);
    return pairs;
}

}  // namespace

void bind_sampler(py::module_& module) {
    py::class_<SharedSampler>(module, "Sampler")
        .def(py::init([](double temperature, std::int64_t top_k, double top_p, double min_p, double typical_p,
                         double repetition_penalty, double presence_penalty, double frequency_penalty,
                         std::vector<std::pair<std::int64_t, float>> logit_bias, std::vector<std::int64_t> banned_ids,
                         std::uint64_t seed) {
                 return std::make_unique<SharedSampler>(
                     SamplingParams{temperature, top_k, top_p, min_p, typical_p, repetition_penalty, presence_penalty,
                                    frequency_penalty, std::move(logit_bias), std::move(banned_ids), seed});
             }),
             py::kw_only(), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_p"),
             py::arg("typical_p"), py::arg("repetition_penalty"), py::arg("presence_penalty"),
             py::arg("frequency_penalty"), py::arg("logit_bias"), py::arg("banned_ids"), py::arg("seed"))
        .def("sample", &sample, py::arg("logits").noconvert(), py::arg("previous"), py::arg("prompt_size"),
             py::arg("allowed"))
        .def("distribution", &distribution, py::arg("logits").noconvert(), py::arg("previous"), py::arg("prompt_size"),
             py::arg("allowed"))
        .def("log_prob", &log_prob, py::arg("logits").noconvert(), py::arg("id"))
        .def("top_log_probs", &top_log_probs, py::arg("logits").noconvert(), py::arg("count"));
}

}  // namespace qwenvl
