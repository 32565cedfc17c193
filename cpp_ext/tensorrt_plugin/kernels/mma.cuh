// The tensor-core and asynchronous-copy instructions of sm_80 and later (PTX ISA: mma.m16n8k16, ldmatrix, cp.async).
//
// Fragments of a warp, lane = 4 g + c: A (16 x 16) holds rows g and g + 8, columns 2c, 2c+1, 2c+8, 2c+9; B (16 x 8)
// column g, rows 2c, 2c+1, 2c+8, 2c+9; the accumulator (16 x 8) rows g and g + 8, columns 2c and 2c+1.
#pragma once

#include <type_traits>

#include "float_types.cuh"

namespace qwenvl {

#ifdef __CUDACC__

using SharedPlace = std::uint32_t;

__device__ __forceinline__ SharedPlace shared_place(const void* pointer) {
    return static_cast<SharedPlace>(__cvta_generic_to_shared(pointer));
}

// place ^ bits, computed where it stands: the compiler would keep one for every step of a loop in a register.
__device__ __forceinline__ SharedPlace flipped(SharedPlace place, int bits) {
    SharedPlace result;
    asm volatile("xor.b32 %0, %1, %2;" : "=r"(result) : "r"(place), "r"(bits));
    return result;
}

// Four 8 x 8 matrices of 16-bit elements. Lane 8 i + j passes the place of row j of matrix i, and receives in
// matrix[i] the elements (lane / 4, 2 (lane % 4)) and the one after it.
__device__ __forceinline__ void load_matrices(std::uint32_t (&matrix)[4], SharedPlace row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(row)
                 : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&matrix)[4], SharedPlace row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
                 : "r"(row)
                 : "memory");
}

// sum [16 x 8] += a [16 x 16] b [16 x 8], in float32.
template <typename Float>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
    if constexpr (std::is_same_v<Float, __half>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
}

// Copies 16 bytes from global to shared memory, beside the computation; zeros instead where not `valid`.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_place(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// Waits until this thread's copies have arrived; the block's other threads see them after the next __syncthreads().
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#endif

}  // namespace qwenvl
