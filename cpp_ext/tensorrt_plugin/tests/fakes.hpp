// Stand-ins for the objects that TensorRT passes to a plugin, for tests without TensorRT.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <deque>
#include <initializer_list>
#include <string>

namespace qwenvl::tests {

// Keeps the last message.
class Logger final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
public:
    void log(Severity, char const* message) noexcept override { last = message; }
    nvinfer1::ILogger* findLogger() override { return this; }
    std::string last;
};

// A known size of a dimension.
class Size final : public nvinfer1::IDimensionExpr {
public:
    explicit Size(std::int64_t value) : value_(value) { mImpl = &value_; }

private:
    struct Value final : nvinfer1::apiv::VDimensionExpr {
        explicit Value(std::int64_t size) : size(size) {}
        bool isConstant() const override { return true; }
        std::int64_t getConstantValue() const override { return size; }
        bool isSizeTensor() const override { return false; }
        std::int64_t size;
    } value_;
};

// Makes constants only, and keeps them.
class ExprBuilder final : public nvinfer1::IExprBuilder {
public:
    ExprBuilder() { mImpl = &maker_; }
    nvinfer1::DimsExprs shape(std::initializer_list<std::int64_t> sizes) {
        nvinfer1::DimsExprs result{};
        for (const std::int64_t size : sizes) result.d[result.nbDims++] = maker_.constant(size);
        return result;
    }

private:
    struct Maker final : nvinfer1::apiv::VExprBuilder {
        nvinfer1::IDimensionExpr const* constant(std::int64_t value) override { return &sizes.emplace_back(value); }
        nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation, nvinfer1::IDimensionExpr const&,
                                                  nvinfer1::IDimensionExpr const&) override {
            return nullptr;
        }
        nvinfer1::IDimensionExpr const* declareSizeTensor(std::int32_t, nvinfer1::IDimensionExpr const&,
                                                          nvinfer1::IDimensionExpr const&) override {
            return nullptr;
        }
        std::deque<Size> sizes;
    } maker_;
};

}  // namespace qwenvl::tests
