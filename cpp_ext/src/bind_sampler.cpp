#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <mutex>
#include <optional>

#include "qwenvl/bindings.hpp"
#include "qwenvl/sampler.hpp"

namespace py = pybind11;

namespace qwenvl {
namespace {

using Logits = py::array_t<float, py::array::c_style>;
using Mask = py::array_t<bool, py::array::c_style>;

// Keeps what a step points to alive, and one caller at a time in the sampler's buffers.
class SharedSampler {
public:
    explicit SharedSampler(SamplingParams params) : sampler_(std::move(params)) {}

    template <typename Use>
    auto with(const Logits& logits, const py::handle& previous, std::size_t prompt_size,
              const std::optional<Mask>& allowed, Use use) {
        const auto size = row_size(logits);
        const std::vector<std::int64_t> ids = previous.is_none() ? std::vector<std::int64_t>{} : ids_of(previous);
        StepContext step{ids.data(), ids.size(), prompt_size, nullptr};
        if (allowed) {
            if (allowed->ndim() != 1 || static_cast<std::size_t>(allowed->size()) != size) {
                throw py::value_error("the mask of allowed ids needs " + std::to_string(size) +
                                      " entries, one for each logit");
            }
            step.allowed = reinterpret_cast<const std::uint8_t*>(allowed->data());
        }
        const float* row = logits.data();
        py::gil_scoped_release release;
        const std::lock_guard<std::mutex> lock(mutex_);
        return use(sampler_, row, size, step);
    }

    template <typename Use>
    auto with(const Logits& logits, Use use) {
        const auto size = row_size(logits);
        const float* row = logits.data();
        py::gil_scoped_release release;
        const std::lock_guard<std::mutex> lock(mutex_);
        return use(sampler_, row, size);
    }

    void reset(std::uint64_t seed) {
        const std::lock_guard<std::mutex> lock(mutex_);
        sampler_.reset(seed);
    }

private:
    static std::size_t row_size(const Logits& logits) {
        if (logits.ndim() != 1) throw py::value_error("logits must be one row [V]; index the batch first");
        return static_cast<std::size_t>(logits.size());
    }

    Sampler sampler_;
    std::mutex mutex_;
};

std::uint32_t sample(SharedSampler& self, const Logits& logits, const py::handle& previous, std::size_t prompt_size,
                     const std::optional<Mask>& allowed) {
    return self.with(logits, previous, prompt_size, allowed,
                     [](Sampler& sampler, const float* row, std::size_t size, const StepContext& step) {
                         return sampler.sample(row, size, step);
                     });
}

py::tuple distribution(SharedSampler& self, const Logits& logits, const py::handle& previous, std::size_t prompt_size,
                       const std::optional<Mask>& allowed) {
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

double log_prob(SharedSampler& self, const Logits& logits, std::size_t id) {
    if (logits.ndim() == 1 && id >= static_cast<std::size_t>(logits.size())) {
        throw py::value_error("token id " + std::to_string(id) + " is outside the row of " +
                              std::to_string(logits.size()) + " logits");
    }
    return self.with(logits, [&](Sampler& sampler, const float* row, std::size_t size) {
        return sampler.log_prob(row, size, static_cast<std::uint32_t>(id)).log_prob;
    });
}

std::vector<std::pair<std::uint32_t, double>> top_log_probs(SharedSampler& self, const Logits& logits,
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
        .def("top_log_probs", &top_log_probs, py::arg("logits").noconvert(), py::arg("count"))
        .def("reset", &SharedSampler::reset, py::arg("seed"));
}

}  // namespace qwenvl
