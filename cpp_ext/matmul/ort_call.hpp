// Calls into ONNX Runtime from an operator: values, shapes, attributes, errors and work on the session's threads.
#pragma once

#include <exception>
#include <stdexcept>
#include <vector>

#include "matmul/ort_abi.hpp"

namespace qwenvl {

using ort::Api;
using ort::Status;

// A failed call to ONNX Runtime, with the status that is returned to it.
struct Failure {
    Status* status;
};

inline void check(Status* status) {
    if (status != nullptr) throw Failure{status};
}

// Calls work() and turns an exception into a status.
template <typename Work>
Status* guarded(const Api* api, Work work) {
    try {
        work();
        return nullptr;
    } catch (const Failure& failure) {
        return failure.status;
    } catch (const std::exception& error) {
        return ort::CreateStatus::call(api, ort::kInvalidArgument, error.what());
    }
}

inline std::vector<std::int64_t> shape_of(const Api* api, const ort::Value* value) {
    ort::ShapeInfo* info = nullptr;
    check(ort::GetTensorTypeAndShape::call(api, value, &info));
    std::size_t rank = 0;
    Status* status = ort::GetDimensionsCount::call(api, info, &rank);
    std::vector<std::int64_t> shape(rank);
    if (status == nullptr) status = ort::GetDimensions::call(api, info, shape.data(), rank);
    ort::ReleaseShapeInfo::call(api, info);
    check(status);
    return shape;
}

template <typename T>
T* data_of(const Api* api, const ort::Value* value) {
    void* data = nullptr;
    check(ort::GetTensorMutableData::call(api, const_cast<ort::Value*>(value), &data));
    return static_cast<T*>(data);
}

inline const ort::Value* input(const Api* api, const ort::KernelContext* context, std::size_t index) {
    const ort::Value* value = nullptr;
    check(ort::GetInput::call(api, context, index, &value));
    return value;
}

// Calls work(i) for every i below `count` on the session's threads.
template <typename Work>
void share(const Api* api, const ort::KernelContext* context, std::size_t count, Work work) {
    if (count == 1) return work(0);
    const auto call = [](void* given, std::size_t i) { (*static_cast<Work*>(given))(i); };
    check(ort::ParallelFor::call(api, context, +call, count, count, static_cast<void*>(&work)));
}

inline std::int64_t attribute(const Api* api, const ort::KernelInfo* info, const char* name) {
    std::int64_t value = 0;
    check(ort::KernelInfoGetInt64::call(api, info, name, &value));
    return value;
}

}  // namespace qwenvl
