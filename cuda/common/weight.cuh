// A weight in device memory as kernels see it, and the decoder of one element. The host side is layout.rs.
#pragma once
#include "common/types.cuh"

struct Weight {
    const u8* base;
    u64 row_bytes;
};

// Element [row, column] of a matrix, exact.
__device__ __forceinline__ float weight_at(const Weight& weight, u32 row, u32 column) {
    return ((const float*)(weight.base + row * weight.row_bytes))[column];
}
