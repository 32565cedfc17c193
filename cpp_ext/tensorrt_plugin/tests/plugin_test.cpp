// Drives the plugin through TensorRT's interfaces, without TensorRT and without a GPU: enqueue runs emulated kernels.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "../plugin/creator.hpp"
#include "../plugin/tensors.hpp"
#include "fakes.hpp"
#include "host_call.hpp"

extern "C" {
void setLoggerFinder(nvinfer1::ILoggerFinder* finder);
nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count);
}

namespace qwenvl::tests {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                \
        }                                                                                \
    } while (false)

constexpr Sizes kSizes{2, 3, 4, 2, 64, 128};  // B, T, NH, KVH, D, C

Logger logger;

bool logged(const char* part) { return logger.last.find(part) != std::string::npos; }

nvinfer1::IPluginCreatorV3One& creator() {
    std::int32_t count = 0;
    auto* const* creators = getCreators(count);
    CHECK(count == 1);
    CHECK(std::string(creators[0]->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
    return static_cast<nvinfer1::IPluginCreatorV3One&>(*creators[0]);
}

using PluginPointer = std::unique_ptr<nvinfer1::IPluginV3>;

PluginPointer create(std::vector<PluginField> fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    logger.last.clear();
    const nvinfer1::PluginFieldCollection collection{static_cast<std::int32_t>(fields.size()), fields.data()};
    return PluginPointer(creator().createPlugin("attention", &collection, phase));
}

PluginPointer create(std::int32_t heads, std::int32_t kv_heads, std::int32_t head_dim, std::int32_t int8,
                     TensorRTPhase phase = TensorRTPhase::kBUILD) {
    return create({PluginField("num_heads", &heads, PluginFieldType::kINT32, 1),
                   PluginField("num_kv_heads", &kv_heads, PluginFieldType::kINT32, 1),
                   PluginField("head_dim", &head_dim, PluginFieldType::kINT32, 1),
                   PluginField("int8_cache", &int8, PluginFieldType::kINT32, 1)},
                  phase);
}

PluginPointer create(bool int8, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    return create(kSizes.heads, kSizes.kv_heads, kSizes.head_dim, int8, phase);
}

template <typename Capability>
Capability& capability(nvinfer1::IPluginV3& plugin, nvinfer1::PluginCapabilityType type) {
    return *static_cast<Capability*>(plugin.getCapabilityInterface(type));
}
nvinfer1::IPluginV3OneBuildV2& build(const PluginPointer& plugin) {
    return capability<nvinfer1::IPluginV3OneBuildV2>(*plugin, nvinfer1::PluginCapabilityType::kBUILD);
}
nvinfer1::IPluginV3OneRuntime& runtime(const PluginPointer& plugin) {
    return capability<nvinfer1::IPluginV3OneRuntime>(*plugin, nvinfer1::PluginCapabilityType::kRUNTIME);
}

void creator_names_the_plugin() {
    CHECK(std::string(creator().getPluginName()) == "KVCacheAttention");
    CHECK(std::string(creator().getPluginVersion()) == "2");
    CHECK(std::string(creator().getPluginNamespace()).empty());
    CHECK(creator().getFieldNames()->nbFields == 4);
    CHECK(std::string(creator().getFieldNames()->fields[2].name) == "head_dim");
    const auto plugin = create(false);
    auto& core = capability<nvinfer1::IPluginV3OneCore>(*plugin, nvinfer1::PluginCapabilityType::kCORE);
    CHECK(std::string(core.getPluginName()) == creator().getPluginName());
    CHECK(std::string(core.getInterfaceInfo().kind) == "PLUGIN_V3ONE_CORE");
    CHECK(build(plugin).getInterfaceInfo().major == 2);
    CHECK(std::string(runtime(plugin).getInterfaceInfo().kind) == "PLUGIN_V3ONE_RUNTIME");
}

void creator_refuses_wrong_attributes() {
    CHECK(!create(4, 2, 88, 0) && logged("head_dim is 88; it must be 64, 72, 80, 96, 104 or 128"));
    CHECK(!create(4, 3, 64, 0) && logged("num_heads is 4, which is no multiple of num_kv_heads, 3"));
    CHECK(!create(0, 0, 64, 0) && logged("num_heads is 0"));
    CHECK(!create(4, 4, 64, 2) && logged("int8_cache is 2"));
    CHECK(!create(std::vector<PluginField>{}) && logged("needs the attribute num_heads"));
    const float wrong_type = 4.0f;
    CHECK(!create({PluginField("num_heads", &wrong_type, PluginFieldType::kFLOAT32, 1)}) && logged("one integer"));
    const std::int64_t heads = 4, kv_heads = 4, head_dim = 64, int8 = 0, huge = std::int64_t{1} << 32 | 4;
    const auto of = [&](const std::int64_t& n) {
        return create({PluginField("num_heads", &n, PluginFieldType::kINT64, 1),
                       PluginField("num_kv_heads", &kv_heads, PluginFieldType::kINT64, 1),
                       PluginField("head_dim", &head_dim, PluginFieldType::kINT64, 1),
                       PluginField("int8_cache", &int8, PluginFieldType::kINT64, 1)});
    };
    CHECK(of(heads) && !of(huge));
}

std::vector<nvinfer1::DynamicPluginTensorDesc> negotiable(DataType type, bool int8) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> all;
    for (const auto& desc : input_descriptions(kSizes, type, int8))
        all.push_back({desc, desc.dims, desc.dims, desc.dims});
    all.push_back(all[kQkv]);
    for (int i = kPresentKey; i < output_count(int8); ++i) all.push_back(all[past_of(i)]);
    return all;
}

void formats_are_linear_and_of_one_float_type() {
    for (const bool int8 : {false, true}) {
        const auto plugin = create(int8);
        const int inputs = input_count(int8), outputs = output_count(int8);
        for (const DataType type : {DataType::kHALF, DataType::kBF16}) {
            auto all = negotiable(type, int8);
            for (int i = 0; i < inputs + outputs; ++i) {
                CHECK(build(plugin).supportsFormatCombination(i, all.data(), inputs, outputs));
                const auto good = all[i].desc;
                all[i].desc.format = nvinfer1::TensorFormat::kCHW32;
                CHECK(!build(plugin).supportsFormatCombination(i, all.data(), inputs, outputs));
                all[i].desc = good;
                all[i].desc.type = good.type == DataType::kFLOAT ? type : DataType::kFLOAT;
                CHECK(!build(plugin).supportsFormatCombination(i, all.data(), inputs, outputs));
                all[i].desc = good;
            }
            all[kPastKey].desc.type = type == DataType::kHALF ? DataType::kBF16 : DataType::kHALF;
            CHECK(!build(plugin).supportsFormatCombination(kPastKey, all.data(), inputs, outputs));
            CHECK(!build(plugin).supportsFormatCombination(0, all.data(), inputs - 1, outputs));
        }
    }
}

void outputs_follow_the_inputs() {
    for (const bool int8 : {false, true}) {
        const auto plugin = create(int8);
        const int inputs = input_count(int8), outputs = output_count(int8);
        CHECK(build(plugin).getNbOutputs() == outputs);
        std::vector<DataType> types, results(outputs);
        ExprBuilder builder;
        std::vector<nvinfer1::DimsExprs> shapes, out(outputs);
        for (const auto& desc : input_descriptions(kSizes, DataType::kBF16, int8)) {
            types.push_back(desc.type);
            shapes.push_back(builder.shape({}));
            for (int d = 0; d < desc.dims.nbDims; ++d)
                shapes.back().d[shapes.back().nbDims++] = builder.shape({desc.dims.d[d]}).d[0];
        }
        CHECK(build(plugin).getOutputDataTypes(results.data(), outputs, types.data(), inputs) == 0);
        CHECK(build(plugin).getOutputDataTypes(results.data(), outputs, types.data(), inputs - 1) != 0);
        CHECK(build(plugin).getOutputShapes(shapes.data(), inputs, nullptr, 0, out.data(), outputs, builder) == 0);
        CHECK(results[kOut] == DataType::kBF16);
        for (int i = 0; i < outputs; ++i) CHECK(build(plugin).getAliasedInput(i) == -1);
        CHECK(out[kOut].nbDims == 3 && out[kOut].d[1] == shapes[kQkv].d[1]);
        CHECK(out[kOut].d[2]->getConstantValue() == kSizes.heads * kSizes.head_dim);
        for (int i = kPresentKey; i < outputs; ++i) {
            const int source = past_of(i);
            CHECK(source >= 0 && results[i] == types[source]);
            CHECK(out[i].nbDims == shapes[source].nbDims && out[i].d[2] == shapes[source].d[2]);
        }
        CHECK(results[kPresentKey] == (int8 ? DataType::kINT8 : DataType::kBF16));
    }
}

void wrong_shapes_are_refused_with_a_sentence() {
    const auto plugin = create(true);
    const auto right = input_descriptions(kSizes, DataType::kHALF, true);
    const auto change = [&](auto&& edit) {
        auto inputs = right;
        edit(inputs);
        return runtime(plugin).onShapeChange(inputs.data(), static_cast<std::int32_t>(inputs.size()), nullptr, 0);
    };
    CHECK(change([](auto&) {}) == 0);
    CHECK(change([](auto& in) { in[kQkv].dims.d[2] = 500; }) != 0 &&
          logged("qkv has shape [2, 3, 500]; it must be [2, 3, 512]"));
    CHECK(change([](auto& in) { in[kPastValue].dims.d[2] = 64; }) != 0 &&
          logged("past_value has shape [2, 2, 64, 64]"));
    CHECK(change([](auto& in) { in[kRopeSin].dims.d[1] = 64; }) != 0 && logged("rope_sin"));
    CHECK(change([](auto& in) { in[kWriteIndices].dims.d[0] = 1; }) != 0 && logged("write_indices"));
    CHECK(change([](auto& in) { in[kValueScale].dims.nbDims = 2; }) != 0 && logged("value_scale"));
    CHECK(change([](auto& in) { in.pop_back(); }) != 0 && logged("8 inputs; with int8_cache = 1 it takes 9"));
    auto unknown = negotiable(DataType::kHALF, true);
    for (auto& tensor : unknown) tensor.desc.dims.d[0] = -1;
    CHECK(build(plugin).configurePlugin(unknown.data(), kInt8CacheInputs, nullptr, 0) == 0);
    unknown[kPastKey].desc.dims.d[3] = 80;
    CHECK(build(plugin).configurePlugin(unknown.data(), kInt8CacheInputs, nullptr, 0) != 0);
}

std::vector<std::int32_t> values(nvinfer1::PluginFieldCollection const* fields) {
    std::vector<std::int32_t> all;
    for (int i = 0; i < fields->nbFields; ++i) all.push_back(*static_cast<std::int32_t const*>(fields->fields[i].data));
    return all;
}

void plugins_survive_serialization_and_cloning() {
    auto plugin = create(8, 2, 104, 1);
    const auto* fields = runtime(plugin).getFieldsToSerialize();
    const std::vector<std::int32_t> written{8, 2, 104, 1};
    CHECK(values(fields) == written);
    const auto read = create({fields->fields, fields->fields + fields->nbFields}, TensorRTPhase::kRUNTIME);
    const PluginPointer clone(plugin->clone()), attached(runtime(plugin).attachToContext(nullptr));
    plugin.reset();
    for (const auto* copy : {&read, &clone, &attached}) {
        CHECK(*copy && values(runtime(*copy).getFieldsToSerialize()) == written);
        CHECK(build(*copy).getNbOutputs() == kInt8CacheOutputs);
    }
}

void enqueue_computes_what_the_reference_does() {
    for (const bool int8 : {false, true})
        for (const DataType type : {DataType::kHALF, DataType::kBF16}) {
            const auto plugin = create(int8);
            HostCall call(kSizes, type, int8), expected(kSizes, type, int8);
            const auto inputs = call.inputs();
            const auto outputs = call.outputs();
            std::vector<float> workspace(build(plugin).getWorkspaceSize(nullptr, 0, nullptr, 0) / sizeof(float));
            CHECK(runtime(plugin).enqueue(call.descriptions.data(), nullptr, inputs.data(), outputs.data(),
                                          workspace.data(), nullptr) == 0);
            CHECK(agrees_with_reference(call, expected));
            CHECK(difference<__half>(call.out, std::vector<std::uint16_t>(call.out.size())) > 0.5);
        }
}

// Runs a plugin on a present key that is not the past one's memory; true if it wrote there.
bool writes_elsewhere(const PluginPointer& plugin) {
    HostCall call(kSizes, DataType::kHALF, false);
    const auto inputs = call.inputs();
    auto outputs = call.outputs();
    std::vector<unsigned char> elsewhere(call.memory[kPastKey].size());
    outputs[kPresentKey] = elsewhere.data();
    std::vector<float> workspace(build(plugin).getWorkspaceSize(nullptr, 0, nullptr, 0) / sizeof(float));
    const std::int32_t status = runtime(plugin).enqueue(call.descriptions.data(), nullptr, inputs.data(),
                                                        outputs.data(), workspace.data(), nullptr);
    const bool written = std::any_of(elsewhere.begin(), elsewhere.end(), [](unsigned char byte) { return byte != 0; });
    CHECK(written == (status == 0));
    return written;
}

void an_engine_insists_on_the_caches_own_memory_and_the_builder_does_not() {
    for (const TensorRTPhase phase : {TensorRTPhase::kBUILD, TensorRTPhase::kRUNTIME}) {
        PluginPointer plugins[3] = {create(false, phase), nullptr, nullptr};
        plugins[1].reset(plugins[0]->clone());
        plugins[2].reset(runtime(plugins[0]).attachToContext(nullptr));
        for (const auto& plugin : plugins) {
            logger.last.clear();
            CHECK(writes_elsewhere(plugin) == (phase == TensorRTPhase::kBUILD));
            CHECK(logged("bind both to the same address") == (phase == TensorRTPhase::kRUNTIME));
        }
    }
}

}  // namespace
}  // namespace qwenvl::tests

int main() {
    using namespace qwenvl::tests;
    setLoggerFinder(&logger);
    creator_names_the_plugin();
    creator_refuses_wrong_attributes();
    formats_are_linear_and_of_one_float_type();
    outputs_follow_the_inputs();
    wrong_shapes_are_refused_with_a_sentence();
    plugins_survive_serialization_and_cloning();
    enqueue_computes_what_the_reference_does();
    an_engine_insists_on_the_caches_own_memory_and_the_builder_does_not();
    std::puts("the plugin's interfaces hold");
}
