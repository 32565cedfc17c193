// Kernel launches on a stream.
#pragma once

#include "device.cuh"

namespace qwenvl {

#ifdef __CUDACC__

constexpr std::size_t kPlainShared = 48 * 1024;  // bytes of dynamic shared memory that need no permission

// Tells if a kernel's code for this device waits in wait_for_previous_kernel(). Code that was compiled for an older
// virtual architecture does not, though a newer device may run it: it would read what is not written yet.
inline cudaError_t waits_for_previous(const void* kernel, bool& waits) {
    cudaFuncAttributes attributes;
    const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
    waits = status == cudaSuccess && attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90;
    return status;
}

template <typename... Parameters, typename... Values>
cudaError_t launch_with(bool overlap, void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared,
                        cudaStream_t stream, Values... values) {
    if (shared > kPlainShared) {
        const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                        cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
        if (status != cudaSuccess) return status;
    }
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = overlap ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, Parameters(values)...);
}

template <typename... Parameters, typename... Values>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared, cudaStream_t stream,
                   Values... values) {
    return launch_with(false, kernel, grid, threads, shared, stream, values...);
}

// For a kernel that calls wait_for_previous_kernel(): where it was compiled for sm_90 or later, its blocks may start
// before the kernel in front of it has ended (programmatic dependent launch), which hides most of the launch.
template <typename... Parameters, typename... Values>
cudaError_t launch_after(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared, cudaStream_t stream,
                         Values... values) {
    bool waits;
    const cudaError_t status = waits_for_previous(reinterpret_cast<const void*>(kernel), waits);
    if (status != cudaSuccess) return status;
    return launch_with(waits, kernel, grid, threads, shared, stream, values...);
}

#endif

}  // namespace qwenvl
