// Kernels as functions that take what cuLaunchKernel takes, pointers to the values of the parameters, and run on simt.hpp.
#pragma once

#include <string>
#include <tuple>
#include <utility>

#include "simt.hpp"

namespace standin {

// 'r' and 'w': pointers to what is only read, and to the rest; digits: bytes of a value.
template <typename T>
constexpr char kind() {
    if constexpr (std::is_pointer_v<T>)
        return std::is_const_v<std::remove_pointer_t<T>> ? 'r' : 'w';
    else
        return static_cast<char>('0' + sizeof(T));
}

template <typename... Parameters>
std::string kinds(void (*)(Parameters...)) {
    return {kind<Parameters>()...};
}

template <typename... Parameters, std::size_t... Index>
void call(void (*kernel)(Parameters...), void** values, dim3 grid, int threads, std::index_sequence<Index...>) {
    const std::tuple<Parameters...> arguments(*static_cast<Parameters*>(values[Index])...);
    qwenvl::simt::run(grid, threads, 0, [&] { std::apply(kernel, arguments); });
}

template <typename... Parameters>
void call(void (*kernel)(Parameters...), void** values, dim3 grid, int threads) {
    call(kernel, values, grid, threads, std::index_sequence_for<Parameters...>());
}

}  // namespace standin

#define STANDIN_KERNEL(name)                                                                                 \
    extern "C" const char* kinds_##name() {                                                                  \
        static const std::string text = standin::kinds(name);                                                \
        return text.c_str();                                                                                 \
    }                                                                                                        \
    extern "C" void call_##name(unsigned x, unsigned y, unsigned z, int threads, bool down, void** values) { \
        qwenvl::simt::descending = down;                                                                     \
        standin::call(name, values, dim3(x, y, z), threads);                                                 \
    }
