// Calls the plugin library on a GPU, through TensorRT's interface and by the C interface with every kernel, and
// compares with the reference: `gpu_test libqwenvl_tensorrt_plugin.so`. Small enough to run under compute-sanitizer.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "../kernels/c_api.h"
#include "../kernels/plan.hpp"
#include "host_call.hpp"

namespace qwenvl::tests {
namespace {

using nvinfer1::DataType;

void require(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "gpu_test: %s\n", what);
    std::exit(1);
}

void cuda(cudaError_t status) { require(status == cudaSuccess, cudaGetErrorString(status)); }

// Copies of a call's tensors on the device, freed with it.
class DeviceCall {
public:
    DeviceCall(HostCall& host, std::size_t workspace_bytes) : host_(host) {
        for (const auto& bytes : host.memory) {
            inputs.push_back(allocate(bytes.size()));
            cuda(cudaMemcpy(inputs.back(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
        }
        outputs.push_back(allocate(out_bytes()));
        for (int i = kPresentKey; i < output_count(host.int8); ++i) outputs.push_back(inputs[past_of(i)]);
        workspace = allocate(workspace_bytes);
        counters = allocate(kCounters * sizeof(std::uint32_t));
        cuda(cudaMemset(counters, 0, kCounters * sizeof(std::uint32_t)));
    }
    DeviceCall(const DeviceCall&) = delete;
    ~DeviceCall() {
        for (void* pointer : owned_) cudaFree(pointer);
    }

    void copy_back() {
        cuda(cudaDeviceSynchronize());
        cuda(cudaMemcpy(host_.out.data(), outputs[kOut], out_bytes(), cudaMemcpyDeviceToHost));
        for (std::size_t i = 0; i < inputs.size(); ++i)
            cuda(cudaMemcpy(host_.memory[i].data(), inputs[i], host_.memory[i].size(), cudaMemcpyDeviceToHost));
    }

    Arguments arguments() {
        Arguments args = host_.arguments();
        args.qkv = inputs[kQkv];
        args.rope_cos = static_cast<float*>(inputs[kRopeCos]), args.rope_sin = static_cast<float*>(inputs[kRopeSin]);
        args.write_indices = static_cast<std::int64_t*>(inputs[kWriteIndices]);
        args.query_scale = static_cast<float*>(inputs[kQueryScale]);
        args.key = inputs[kPastKey], args.value = inputs[kPastValue];
        if (host_.int8) args.key_scale = static_cast<float*>(inputs[kKeyScale]);
        if (host_.int8) args.value_scale = static_cast<float*>(inputs[kValueScale]);
        args.out = outputs[kOut], args.workspace = workspace;
        args.counters = static_cast<std::uint32_t*>(counters);
        return args;
    }

    std::vector<void*> inputs, outputs;
    void* workspace;
    void* counters;

private:
    std::size_t out_bytes() const { return host_.out.size() * sizeof(host_.out[0]); }
    void* allocate(std::size_t bytes) {
        void* pointer;
        cuda(cudaMalloc(&pointer, bytes));
        owned_.push_back(pointer);
        return pointer;
    }
    HostCall& host_;
    std::vector<void*> owned_;
};

class Library {
public:
    explicit Library(const char* path) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
        require(handle_ != nullptr, "the library cannot be loaded");
        planned = symbol<decltype(&qwenvl_kv_cache_attention_planned)>("qwenvl_kv_cache_attention_planned");
        workspace = symbol<decltype(&qwenvl_kv_cache_attention_workspace)>("qwenvl_kv_cache_attention_workspace");
        using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(std::int32_t&);
        std::int32_t count;
        auto* const* creators = symbol<GetCreators>("getCreators")(count);
        creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[0]);
    }

    decltype(&qwenvl_kv_cache_attention_planned) planned;
    decltype(&qwenvl_kv_cache_attention_workspace) workspace;
    nvinfer1::IPluginCreatorV3One* creator;

private:
    template <typename Function>
    Function symbol(const char* name) {
        void* found = dlsym(handle_, name);
        require(found != nullptr, name);
        return reinterpret_cast<Function>(found);
    }
    void* handle_;
};

std::unique_ptr<nvinfer1::IPluginV3> create(const Library& library, const Sizes& sizes, std::int32_t int8) {
    using nvinfer1::PluginField;
    constexpr auto kType = nvinfer1::PluginFieldType::kINT32;
    const PluginField fields[] = {
        PluginField("num_heads", &sizes.heads, kType, 1), PluginField("num_kv_heads", &sizes.kv_heads, kType, 1),
        PluginField("head_dim", &sizes.head_dim, kType, 1), PluginField("int8_cache", &int8, kType, 1)};
    const nvinfer1::PluginFieldCollection collection{4, fields};
    return std::unique_ptr<nvinfer1::IPluginV3>(
        library.creator->createPlugin("attention", &collection, nvinfer1::TensorRTPhase::kRUNTIME));
}

nvinfer1::IPluginV3OneRuntime& runtime_of(nvinfer1::IPluginV3& plugin) {
    return *static_cast<nvinfer1::IPluginV3OneRuntime*>(
        plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
}

// enqueue, then the same captured into a graph, as an engine is, and launched.
void enqueue_in_a_graph(const Library& library, const Sizes& sizes, DataType type, bool int8) {
    const auto plugin = create(library, sizes, int8);
    require(plugin != nullptr, "no plugin was made");
    const std::unique_ptr<nvinfer1::IPluginV3> attached(runtime_of(*plugin).attachToContext(nullptr));
    require(attached != nullptr, "no plugin was attached");
    auto& runtime = runtime_of(*attached);
    HostCall call(sizes, type, int8), expected(sizes, type, int8);
    DeviceCall device(call, library.workspace(sizes.head_dim));
    const auto enqueue = [&](cudaStream_t stream) {
        require(runtime.enqueue(call.descriptions.data(), nullptr, device.inputs.data(), device.outputs.data(),
                                device.workspace, stream) == 0,
                "enqueue failed");
    };
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cuda(cudaStreamCreate(&stream));
    enqueue(stream);  // loads the kernels, which a capture may not; the same call again writes the same
    cuda(cudaStreamSynchronize(stream));
    cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enqueue(stream);
    cuda(cudaStreamEndCapture(stream, &graph));
    cuda(cudaGraphInstantiate(&executable, graph, 0));
    cuda(cudaGraphLaunch(executable, stream));
    cuda(cudaStreamSynchronize(stream));
    device.copy_back();
    require(agrees_with_reference(call, expected), "enqueue does not compute what the reference does");
    cuda(cudaGraphExecDestroy(executable));
    cuda(cudaGraphDestroy(graph));
    cuda(cudaStreamDestroy(stream));
}

// Twice: the last block combines, and a kernel of its own does.
void run_plan(const Library& library, const Sizes& sizes, DataType type, bool int8, int block_rows, int splits,
              bool count = true) {
    HostCall call(sizes, type, int8), expected(sizes, type, int8);
    DeviceCall device(call, library.workspace(sizes.head_dim));
    Arguments args = device.arguments();
    if (!count) args.counters = nullptr;
    require(library.planned(&args, block_rows, splits, nullptr) == cudaSuccess, "a plan was refused");
    device.copy_back();
    require(agrees_with_reference(call, expected), "a kernel does not compute what the reference does");
    if (count) run_plan(library, sizes, type, int8, block_rows, splits, false);
}

void run_all(const Library& library, int head_dim, DataType type, bool int8) {
    const auto sizes = [&](int tokens) { return Sizes{2, tokens, 4, 2, head_dim, 256}; };
    for (const int tokens : {1, 2, 20, 70}) enqueue_in_a_graph(library, sizes(tokens), type, int8);
    for (const int splits : {1, 3}) {
        run_plan(library, {2, 1, 2, 2, head_dim, 256}, type, int8, 1, splits);
        run_plan(library, {2, 1, 4, 2, head_dim, 256}, type, int8, 2, splits);
        run_plan(library, sizes(2), type, int8, 4, splits);
        run_plan(library, sizes(20), type, int8, 64, splits);
    }
    if (!int8) run_plan(library, sizes(70), type, int8, 128, 1);
}

}  // namespace
}  // namespace qwenvl::tests

int main(int argc, char** argv) {
    using namespace qwenvl::tests;
    require(argc == 2, "name the plugin library");
    const Library library(argv[1]);
    for (const int head_dim : {64, 72, 80, 96, 104, 128})
        for (const DataType type : {DataType::kHALF, DataType::kBF16})
            for (const bool int8 : {false, true}) run_all(library, head_dim, type, int8);
    std::puts("every kernel computes what the reference does");
}
