// A GPU's threads on a CPU: what kernels/*.cuh use of CUDA, for a C++ compiler.
//
// Each thread of a block is a fiber that runs until it has to wait for its warp or its block. Shared memory starts as
// NaN, asynchronous copies arrive only when waited for, misaligned vectors abort, and a warp runs as far as it can
// before the next one starts, in ascending or descending order, so that a missing barrier or wait shows. Blocks run one
// after the other. Not for speed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#undef __launch_bounds__
#define __launch_bounds__(...)

namespace qwenvl::simt {

struct Index {
    unsigned x, y, z;
};

// Of the running fiber.
extern Index thread_index, block_index, grid_size;
unsigned char* shared_memory();

// Runs `kernel` for every thread of every block, warps and threads in descending order if `descending` is set.
void run(dim3 grid, int threads, std::size_t shared_bytes, const std::function<void()>& kernel);
extern bool descending;

constexpr std::size_t kSharedAlignment = 256;  // as kernels/device.cuh has it

void block_barrier();

// One value of up to 64 bytes from every lane of the warp, all lanes there: valid until the lane's next exchange.
struct Exchange {
    alignas(16) unsigned char bytes[32][64];
};
const Exchange& exchange(const void* value, std::size_t size);

template <typename T>
T from_lane(const Exchange& values, int lane) {
    T value;
    std::memcpy(&value, values.bytes[lane], sizeof value);
    return value;
}

inline int lane() { return static_cast<int>(thread_index.x % 32); }

void copy_later(void* shared, const void* global, bool valid);
void finish_copies();
void check_aligned(const void* pointer, std::size_t alignment, const char* what);

// Counts matrices of an ldmatrix of which two rows are in the same 16 of shared memory's 128 bytes that are read at
// once.
void count_conflicts(const Exchange& rows);
extern long conflicts;
extern int launches;

}  // namespace qwenvl::simt

#define threadIdx (::qwenvl::simt::thread_index)
#define blockIdx (::qwenvl::simt::block_index)
#define gridDim (::qwenvl::simt::grid_size)

inline void __syncthreads() { qwenvl::simt::block_barrier(); }
inline void __syncwarp() { qwenvl::simt::exchange(nullptr, 0); }
template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask) {
    return qwenvl::simt::from_lane<T>(qwenvl::simt::exchange(&x, sizeof x), qwenvl::simt::lane() ^ mask);
}
template <typename T>
T atomicAdd(T* place, T x) {
    const T before = *place;
    *place += x;
    return before;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fmul_rn(float x, float y) { return x * y; }

inline float __uint_as_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Byte i of the result is byte (selector >> 4 i) & 7 of the eight bytes y:x.
inline std::uint32_t __byte_perm(std::uint32_t x, std::uint32_t y, std::uint32_t selector) {
    const std::uint64_t both = std::uint64_t{y} << 32 | x;
    std::uint32_t result = 0;
    for (int i = 0; i < 4; ++i) result |= (both >> (selector >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
    return result;
}

namespace qwenvl {

inline unsigned char* dynamic_shared() { return simt::shared_memory(); }
inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}
inline void publish_results() {}
inline float load_shared_result(const float* x) { return *x; }
inline float2 load_shared_result(const float2* x) { return *x; }
inline bool is_last_of(std::uint32_t* counter, std::uint32_t count) {
    const bool last = *counter == count - 1;
    *counter = last ? 0 : *counter + 1;
    return last;
}
// ex2.approx.ftz: results below the smallest normal number are zero.
inline float power_of_two(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }

inline float shuffle_xor(float x, int mask) {
    return simt::from_lane<float>(simt::exchange(&x, sizeof x), simt::lane() ^ mask);
}

// The instructions of kernels/mma.cuh, by their definition in the PTX ISA.
using SharedPlace = std::uintptr_t;
inline SharedPlace shared_place(const void* pointer) { return reinterpret_cast<SharedPlace>(pointer); }
inline SharedPlace flipped(SharedPlace place, int bits) { return place ^ static_cast<SharedPlace>(bits); }

inline void load_matrix_rows(std::uint32_t (&matrix)[4], SharedPlace place, bool transposed) {
    const void* row = reinterpret_cast<const void*>(place);
    simt::check_aligned(row, 16, "ldmatrix");
    const simt::Exchange& rows = simt::exchange(&row, sizeof row);
    simt::count_conflicts(rows);
    const int g = simt::lane() / 4, c = simt::lane() % 4 * 2;
    for (int i = 0; i < 4; ++i) {
        std::uint16_t pair[2];
        for (int j = 0; j < 2; ++j) {
            const int r = transposed ? c + j : g, column = transposed ? g : c + j;
            std::memcpy(&pair[j], simt::from_lane<const std::uint16_t*>(rows, 8 * i + r) + column, sizeof pair[j]);
        }
        std::memcpy(&matrix[i], pair, sizeof pair);
    }
}
inline void load_matrices(std::uint32_t (&matrix)[4], SharedPlace row) { load_matrix_rows(matrix, row, false); }
inline void load_matrices_transposed(std::uint32_t (&matrix)[4], SharedPlace row) {
    load_matrix_rows(matrix, row, true);
}

template <typename Float>
float element(const simt::Exchange& fragments, int lane, int word, int half) {
    Float x;
    std::memcpy(&x, fragments.bytes[lane] + 4 * word + 2 * half, sizeof x);
    if constexpr (std::is_same_v<Float, __half>)
        return __half2float(x);
    else
        return __bfloat162float(x);
}

template <typename Float>
void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    const std::uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const simt::Exchange& all = simt::exchange(mine, sizeof mine);
    const int g = simt::lane() / 4, c = simt::lane() % 4;
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 16; ++k) {
            const int column = 2 * c + i % 2, source = k % 8 / 2;
            sum[i] += element<Float>(all, 4 * g + source, i / 2 + k / 8 * 2, k % 2) *
                      element<Float>(all, 4 * column + source, 4 + k / 8, k % 2);
        }
}

inline void copy_async(void* shared, const void* global, bool valid) { simt::copy_later(shared, global, valid); }
inline void wait_for_copies() { simt::finish_copies(); }

template <typename... Parameters, typename... Values>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared, cudaStream_t,
                   Values... values) {
    simt::run(grid, threads, shared, [=] { kernel(values...); });
    return cudaSuccess;
}

template <typename... Parameters, typename... Values>
cudaError_t launch_after(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared, cudaStream_t stream,
                         Values... values) {
    return launch(kernel, grid, threads, shared, stream, values...);
}

}  // namespace qwenvl
