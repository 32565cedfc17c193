// Compiles only where matmul/ort_abi.hpp agrees with ONNX Runtime's own onnxruntime_c_api.h on the places of functions
// and fields, on the values of enumerators, and on how arguments are passed.
#include "matmul/ort_abi.hpp"

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <type_traits>

namespace ort = qwenvl::ort;

namespace {

// Types that are passed alike: pointers (to whatever), numbers and enumerators of one size.
template <typename Ours, typename Theirs>
constexpr bool kPassedAlike =
    std::is_void_v<Ours> || std::is_void_v<Theirs>
        ? std::is_void_v<Ours> == std::is_void_v<Theirs>
        : std::is_pointer_v<Ours> == std::is_pointer_v<Theirs> &&
              std::is_floating_point_v<Ours> == std::is_floating_point_v<Theirs> &&
              sizeof(std::conditional_t<std::is_void_v<Ours>, char, Ours>) ==
                  sizeof(std::conditional_t<std::is_void_v<Theirs>, char, Theirs>);

template <typename Ours, typename Theirs>
constexpr bool kCalledAlike = false;

template <typename R, typename... A, typename S, typename... B>
constexpr bool kCalledAlike<R(A...), S(B...)> = [] {
    if constexpr (sizeof...(A) != sizeof...(B)) {
        return false;
    } else {
        return kPassedAlike<R, S> && (kPassedAlike<A, B> && ...);
    }
}();

template <typename R, typename... A, typename S, typename... B>
constexpr bool kCalledAlike<R(A...), S(B...) noexcept> = kCalledAlike<R(A...), S(B...)>;

template <typename Pointer>
using Pointed = std::remove_pointer_t<std::remove_cv_t<Pointer>>;

}  // namespace

#define FUNCTION(ours, theirs)                                                                             \
    static_assert(ort::ours::place == offsetof(OrtApi, theirs) / sizeof(void*), #theirs " lies elsewhere"); \
    static_assert(kCalledAlike<ort::ours::Function, Pointed<decltype(OrtApi::theirs)>>, #theirs " is called otherwise")

FUNCTION(CreateStatus, CreateStatus);
FUNCTION(CreateCustomOpDomain, CreateCustomOpDomain);
FUNCTION(CustomOpDomainAdd, CustomOpDomain_Add);
FUNCTION(AddCustomOpDomain, AddCustomOpDomain);
FUNCTION(GetTensorMutableData, GetTensorMutableData);
FUNCTION(GetDimensionsCount, GetDimensionsCount);
FUNCTION(GetDimensions, GetDimensions);
FUNCTION(GetTensorTypeAndShape, GetTensorTypeAndShape);
FUNCTION(KernelInfoGetFloat, KernelInfoGetAttribute_float);
FUNCTION(KernelInfoGetInt64, KernelInfoGetAttribute_int64);
FUNCTION(GetInput, KernelContext_GetInput);
FUNCTION(GetOutput, KernelContext_GetOutput);
FUNCTION(ReleaseShapeInfo, ReleaseTensorTypeAndShapeInfo);
FUNCTION(KernelInfoGetConstantInput, KernelInfoGetConstantInput_tensor);
FUNCTION(ParallelFor, KernelContext_ParallelFor);

#define FIELD_OF(Ours, ours, Theirs, theirs)                                                  \
    static_assert(offsetof(Ours, ours) == offsetof(Theirs, theirs), #theirs " lies elsewhere"); \
    static_assert(kCalledAlike<Pointed<decltype(Ours::ours)>, Pointed<decltype(Theirs::theirs)>>, \
                  #theirs " is called otherwise")
#define FIELD(ours, theirs) FIELD_OF(ort::CustomOp, ours, OrtCustomOp, theirs)

static_assert(offsetof(ort::CustomOp, version) == offsetof(OrtCustomOp, version));
static_assert(sizeof(ort::CustomOp::version) == sizeof(OrtCustomOp::version));
FIELD(create_kernel, CreateKernel);
FIELD(get_name, GetName);
FIELD(get_execution_provider_type, GetExecutionProviderType);
FIELD(get_input_type, GetInputType);
FIELD(get_input_type_count, GetInputTypeCount);
FIELD(get_output_type, GetOutputType);
FIELD(get_output_type_count, GetOutputTypeCount);
FIELD(kernel_compute, KernelCompute);
FIELD(kernel_destroy, KernelDestroy);
FIELD(get_input_characteristic, GetInputCharacteristic);
FIELD(get_output_characteristic, GetOutputCharacteristic);
FIELD(get_input_memory_type, GetInputMemoryType);
FIELD(get_variadic_input_min_arity, GetVariadicInputMinArity);
FIELD(get_variadic_input_homogeneity, GetVariadicInputHomogeneity);
FIELD(get_variadic_output_min_arity, GetVariadicOutputMinArity);
FIELD(get_variadic_output_homogeneity, GetVariadicOutputHomogeneity);
FIELD(create_kernel_v2, CreateKernelV2);
FIELD(kernel_compute_v2, KernelComputeV2);
FIELD(infer_output_shape, InferOutputShapeFn);
FIELD(get_start_version, GetStartVersion);
FIELD(get_end_version, GetEndVersion);
FIELD(get_may_inplace, GetMayInplace);
FIELD(release_may_inplace, ReleaseMayInplace);
FIELD(get_alias_map, GetAliasMap);
FIELD(release_alias_map, ReleaseAliasMap);
// A later version may have more fields, which ONNX Runtime reads only of operators that declare it.
static_assert(sizeof(ort::CustomOp) <= sizeof(OrtCustomOp));

FIELD_OF(ort::ApiBase, get_api, OrtApiBase, GetApi);
FIELD_OF(ort::ApiBase, get_version_string, OrtApiBase, GetVersionString);

static_assert(ort::kApiVersion <= ORT_API_VERSION);
static_assert(ort::kFloat == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && ort::kUint8 == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
static_assert(ort::kInt32 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 && ort::kInt64 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
static_assert(ort::kInt8 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 && ort::kBool == ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL);
static_assert(ort::kFloat16 == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
static_assert(ort::kRequired == INPUT_OUTPUT_REQUIRED && ort::kOptional == INPUT_OUTPUT_OPTIONAL);
static_assert(ort::kInvalidArgument == ORT_INVALID_ARGUMENT);
static_assert(OrtMemTypeDefault == 0, "what get_input_memory_type returns");
