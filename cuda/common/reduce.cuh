// Sums over a CTA in an order fixed by the CTA's size alone.
#pragma once
#include "common/types.cuh"

// Sum over a warp; every lane gets it. Butterfly order.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

// Sum over a CTA of THREADS threads (a multiple of 32, at most 1024); every thread gets it. `partials` is shared, 32
// floats. Ends with a barrier, so `partials` may be used again at once.
template <int THREADS>
__device__ __forceinline__ float cta_sum(float value, float* partials) {
    constexpr int WARPS = THREADS / 32;
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) total += partials[warp];
    __syncthreads();
    return total;
}
