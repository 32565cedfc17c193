// The functions that IPluginRegistry::loadLibrary() looks for in a plugin library, and the logger that it passes in.
#include "creator.hpp"
#include "log.hpp"

namespace qwenvl {
namespace {

nvinfer1::ILoggerFinder* logger_finder = nullptr;

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

void log_error(const std::string& sentence) noexcept {
    nvinfer1::ILogger* logger = logger_finder != nullptr ? logger_finder->findLogger() : nullptr;
    if (logger != nullptr) logger->log(nvinfer1::ILogger::Severity::kERROR, sentence.c_str());
}

}  // namespace qwenvl

extern "C" {

__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    qwenvl::set_logger_finder(finder);
}

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    static qwenvl::KVCacheAttentionCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}
}
