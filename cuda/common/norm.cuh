// The scale of an RMS-normalised row, in the one order every kernel that normalises uses.
#pragma once
#include "common/reduce.cuh"

#define NORM_THREADS 256

// 1 / sqrt(mean(x^2) + eps) of a row of `width`; every thread of the CTA gets it. Thread t < 256 adds elements t, t + 256,
// ...; then a butterfly over each warp, then the eight warps in order; further threads only wait. `partials`: shared, 8
// floats. Ends with a barrier.
__device__ __forceinline__ float rms_scale(const float* x, u32 width, float eps, float* partials) {
    float sum = 0.0f;
    if (threadIdx.x < NORM_THREADS) {
#pragma unroll 4
        for (u32 i = threadIdx.x; i < width; i += NORM_THREADS) sum = fmaf(x[i], x[i], sum);
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < NORM_THREADS / 32; ++warp) total += partials[warp];
    __syncthreads();
    return 1.0f / sqrtf(total / (float)width + eps);
}
