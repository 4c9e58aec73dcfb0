// The scale of an RMS-normalised row, in the one order every kernel that normalises uses.
#pragma once
#include "common/reduce.cuh"

#define NORM_THREADS 256

// Loads under way at once.
#define NORM_QUADS 4

// This thread's share of the sum of squares: elements 4t .. 4t + 3, then those 1024 further, and so on.
__device__ __forceinline__ float squares_of(const float* x, u32 width) {
    float sum = 0.0f;
    if (width % 4 != 0) {
        for (u32 first = 4 * threadIdx.x; first < width; first += 4 * NORM_THREADS) {
            for (u32 i = first; i < width && i < first + 4; ++i) sum = fmaf(x[i], x[i], sum);
        }
        return sum;
    }
    for (u32 first = threadIdx.x; first < width / 4; first += NORM_QUADS * NORM_THREADS) {
        Floats4 quads[NORM_QUADS];
#pragma unroll
        for (u32 i = 0; i < NORM_QUADS; ++i) {
            const u32 quad = first + i * NORM_THREADS;
            quads[i] = {{0.0f, 0.0f, 0.0f, 0.0f}};
            if (quad < width / 4) quads[i] = ((const Floats4*)x)[quad];
        }
#pragma unroll
        for (u32 i = 0; i < NORM_QUADS; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sum = fmaf(quads[i].at[j], quads[i].at[j], sum);
    }
    return sum;
}

// 1 / sqrt(mean(x^2) + eps) of a row of `width`, from each thread's share of the squares; every thread of the CTA gets it. A
// butterfly over each of the first eight warps, then these in order; further threads only wait. `partials`: shared, 8 floats.
// Ends with a barrier.
__device__ __forceinline__ float scale_of_squares(float squares, u32 width, float eps, float* partials) {
    if (threadIdx.x < NORM_THREADS) {
        const float sum = warp_sum(squares);
        if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < NORM_THREADS / 32; ++warp) total += partials[warp];
    __syncthreads();
    return 1.0f / sqrtf(total / (float)width + eps);
}

// The same of N rows by a CTA of NORM_THREADS.
template <int N>
__device__ __forceinline__ void scales_of_squares(const float (&squares)[N], u32 width, float eps,
                                                  float (*partials)[NORM_THREADS / 32], float (&scales)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const float sum = warp_sum(squares[n]);
        if (threadIdx.x % 32 == 0) partials[n][threadIdx.x / 32] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) {
        float total = 0.0f;
#pragma unroll
        for (int warp = 0; warp < NORM_THREADS / 32; ++warp) total += partials[n][warp];
        scales[n] = 1.0f / sqrtf(total / (float)width + eps);
    }
}

// The same of a row in memory, aligned to 16 bytes where the width is a multiple of 4.
__device__ __forceinline__ float rms_scale(const float* x, u32 width, float eps, float* partials) {
    return scale_of_squares(threadIdx.x < NORM_THREADS ? squares_of(x, width) : 0.0f, width, eps, partials);
}
