// An activation record made by a whole warp, one element a lane; the bits are those of quantize_block.
#pragma once
#include "common/quantize.cuh"

// All lanes call it. `value`: element `lane` of record `record`.
__device__ __forceinline__ void quantize_warp(float value, u8* codes, ActivationSums* sums, u64 record) {
    const u32 part = threadIdx.x % 8;
    Floats4 four;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.at[i] = __shfl_sync(0xffffffffu, value, 4 * part + i);
    quantize_block(four, part, threadIdx.x % 32 < 8, {codes, sums, record});
}
