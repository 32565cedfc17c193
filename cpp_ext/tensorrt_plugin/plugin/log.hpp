// Messages to TensorRT's logger, which hands itself over when it loads the library.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace qwenvl {

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// One sentence, as an error; nowhere when no logger is known.
void log_error(const std::string& sentence) noexcept;

}  // namespace qwenvl
