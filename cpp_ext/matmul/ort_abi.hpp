// The parts of ONNX Runtime's C interface that a custom operator needs, since its Python package brings no headers.
//
// Functions are reached through a table whose entries never move; new ones are added at its end. The numbers are their
// places in `OrtApi`, the fields of CustomOp those of `OrtCustomOp` in version 18 (onnxruntime_c_api.h). Types that
// only pass through are opaque. tests/ort_abi.cpp compares all this with the official header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwenvl::ort {

constexpr std::uint32_t kApiVersion = 18;  // ONNX Runtime 1.18; later ones serve it too

struct Status;         // nullptr: success
struct Api;            // the table
struct KernelInfo;
struct KernelContext;
struct Value;
struct ShapeInfo;
struct CustomOpDomain;
struct SessionOptions;
struct ShapeInferContext;

struct ApiBase {
    const Api* (*get_api)(std::uint32_t version);
    const char* (*get_version_string)();
};

enum ElementType : int { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kBool = 9, kFloat16 = 10 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum ErrorCode : int { kInvalidArgument = 2 };

struct CustomOp {
    std::uint32_t version;
    void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
    const char* (*get_name)(const CustomOp*);
    const char* (*get_execution_provider_type)(const CustomOp*);
    ElementType (*get_input_type)(const CustomOp*, std::size_t);
    std::size_t (*get_input_type_count)(const CustomOp*);
    ElementType (*get_output_type)(const CustomOp*, std::size_t);
    std::size_t (*get_output_type_count)(const CustomOp*);
    void (*kernel_compute)(void*, KernelContext*);
    void (*kernel_destroy)(void*);
    Characteristic (*get_input_characteristic)(const CustomOp*, std::size_t);
    Characteristic (*get_output_characteristic)(const CustomOp*, std::size_t);
    int (*get_input_memory_type)(const CustomOp*, std::size_t);
    int (*get_variadic_input_min_arity)(const CustomOp*);
    int (*get_variadic_input_homogeneity)(const CustomOp*);
    int (*get_variadic_output_min_arity)(const CustomOp*);
    int (*get_variadic_output_homogeneity)(const CustomOp*);
    Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
    Status* (*kernel_compute_v2)(void*, KernelContext*);
    Status* (*infer_output_shape)(const CustomOp*, ShapeInferContext*);
    int (*get_start_version)(const CustomOp*);
    int (*get_end_version)(const CustomOp*);
    std::size_t (*get_may_inplace)(int**, int**);
    void (*release_may_inplace)(int*, int*);
    std::size_t (*get_alias_map)(int**, int**);
    void (*release_alias_map)(int*, int*);
};

// The function of type F at place kPlace of the table.
template <std::size_t kPlace, typename F>
struct Entry {
    static constexpr std::size_t place = kPlace;
    using Function = F;

    template <typename... Arguments>
    static auto call(const Api* api, Arguments... arguments) {
        return reinterpret_cast<F* const*>(api)[kPlace](arguments...);
    }
};

using CreateStatus = Entry<0, Status*(ErrorCode, const char*)>;
using CreateCustomOpDomain = Entry<26, Status*(const char*, CustomOpDomain**)>;
using CustomOpDomainAdd = Entry<27, Status*(CustomOpDomain*, const CustomOp*)>;
using AddCustomOpDomain = Entry<28, Status*(SessionOptions*, CustomOpDomain*)>;
using GetTensorMutableData = Entry<51, Status*(Value*, void**)>;
using GetDimensionsCount = Entry<61, Status*(const ShapeInfo*, std::size_t*)>;
using GetDimensions = Entry<62, Status*(const ShapeInfo*, std::int64_t*, std::size_t)>;
using GetTensorTypeAndShape = Entry<65, Status*(const Value*, ShapeInfo**)>;
using KernelInfoGetFloat = Entry<85, Status*(const KernelInfo*, const char*, float*)>;
using KernelInfoGetInt64 = Entry<86, Status*(const KernelInfo*, const char*, std::int64_t*)>;
using GetInput = Entry<90, Status*(const KernelContext*, std::size_t, const Value**)>;
using GetOutput = Entry<91, Status*(KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**)>;
using ReleaseShapeInfo = Entry<99, void(ShapeInfo*)>;
using KernelInfoGetConstantInput =
    Entry<249, Status*(const KernelInfo*, std::size_t, int* is_constant, const Value**)>;
using ParallelFor = Entry<274, Status*(const KernelContext*, void (*)(void*, std::size_t), std::size_t, std::size_t,
                                       void*)>;

}  // namespace qwenvl::ort
