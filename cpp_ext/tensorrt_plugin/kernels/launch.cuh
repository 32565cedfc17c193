// Kernel launches on a stream.
#pragma once

#include "device.cuh"

namespace qwenvl {

#ifdef __CUDACC__

constexpr std::size_t kPlainShared = 48 * 1024;  // bytes of dynamic shared memory that need no permission

// The device's compute capability (its major part), asked for at each launch: a process may use several devices.
inline cudaError_t compute_capability(int& major) {
    int device;
    const cudaError_t status = cudaGetDevice(&device);
    return status != cudaSuccess ? status : cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
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

// For a kernel that calls wait_for_previous_kernel(): from sm_90 on its blocks may start before the kernel in front of
// it has ended (programmatic dependent launch), which hides most of the launch.
template <typename... Parameters, typename... Values>
cudaError_t launch_after(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared, cudaStream_t stream,
                         Values... values) {
    int major;
    const cudaError_t status = compute_capability(major);
    if (status != cudaSuccess) return status;
    return launch_with(major >= 9, kernel, grid, threads, shared, stream, values...);
}

#endif

}  // namespace qwenvl
