// rms_norm whose result is read by products: the activation records of y = x * weight / sqrt(mean(x^2) + eps).
//
// x: [rows, width] f32, weight: [width] f32, width a multiple of 32; codes, sums: [rows, width / 32] records
// (common/activation.cuh); y: [rows, width] f32 where something else reads it too, or null.
// Grid: (most rows); 512 threads per row, for many rows 256. Moves 8 bytes in and 2.5 (or 6.5) out per element; bound by
// latency, so the weights of the first 8192 elements are loaded before the previous kernel ends. The bits are those of rms_norm
// and linear_quantize one after the other (common/norm.cuh).
#include "common/norm.cuh"
#include "common/quantize.cuh"

#define CTA_THREADS 512
#define WEIGHTS_HELD 4

struct RmsNormQuantizeArgs {
    const float* x;
    const float* weight;
    float* y;
    u8* codes;
    ActivationSums* sums;
    const u32* rows;
    u32 width;
    float eps;
    u32 use;  // a RecordUse
    u32 reserved;
};

__device__ __forceinline__ void quantize_scaled(const RmsNormQuantizeArgs& args, u32 row, u32 quad, const Floats4& x,
                                                const Floats4& weight, float scale) {
    // Quads past the end stay for the shuffles.
    const bool live = quad < args.width / 4;
    const u64 at = (u64)row * (args.width / 4) + (live ? quad : 0);
    Floats4 y;
#pragma unroll
    for (int i = 0; i < 4; ++i) y.at[i] = x.at[i] * scale * weight.at[i];
    if (live && args.y) ((Floats4*)args.y)[at] = y;
    const u32 block = live ? quad / 8 : 0;
    quantize_block(y, quad % 8, live, {args.codes, args.sums, row, args.width / 32, block, args.use});
}

KERNEL(rms_norm_quantize_f32, RmsNormQuantizeArgs, CTA_THREADS) {
    __shared__ float partials[NORM_THREADS / 32];
    const u32 quads = args.width / 4;
    const Floats4* weights = (const Floats4*)args.weight;
    Floats4 held[WEIGHTS_HELD];
#pragma unroll
    for (u32 i = 0; i < WEIGHTS_HELD; ++i) {
        const u32 quad = threadIdx.x + i * CTA_THREADS;
        held[i] = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if (quad < quads) held[i] = weights[quad];
    }
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 row = blockIdx.x;
    if (row >= *args.rows) return;
    const float* x = args.x + (u64)row * args.width;
    const float scale = rms_scale(x, args.width, args.eps, partials);
#pragma unroll
    for (u32 i = 0; i < WEIGHTS_HELD; ++i) {
        const u32 quad = threadIdx.x + i * CTA_THREADS;
        // Whole warps without an element leave.
        if (quad - threadIdx.x % 32 >= quads) break;
        quantize_scaled(args, row, quad, ((const Floats4*)x)[quad < quads ? quad : 0], held[i], scale);
    }
    for (u32 first = WEIGHTS_HELD * CTA_THREADS; first < quads; first += CTA_THREADS) {
        const u32 quad = first + threadIdx.x;
        const u32 at = quad < quads ? quad : 0;
        if (quad - threadIdx.x % 32 < quads) quantize_scaled(args, row, quad, ((const Floats4*)x)[at], weights[at], scale);
    }
}

// The same for many rows of up to 4 NORM_QUADS NORM_THREADS elements, which their threads hold: half as many threads a row, so
// that twice as many rows are on their way, and read once.
KERNEL(rms_norm_quantize_rows_f32, RmsNormQuantizeArgs, NORM_THREADS, 6) {
    __shared__ float partials[NORM_THREADS / 32];
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 row = blockIdx.x;
    if (row >= *args.rows) return;
    const u32 quads = args.width / 4;
    const Floats4* x = (const Floats4*)(args.x + (u64)row * args.width);
    Floats4 own[NORM_QUADS];
#pragma unroll
    for (u32 i = 0; i < NORM_QUADS; ++i) {
        const u32 quad = threadIdx.x + i * NORM_THREADS;
        own[i] = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if (quad < quads) own[i] = x[quad];
    }
    // As `squares_of` adds them.
    float squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < NORM_QUADS; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) squares = fmaf(own[i].at[j], own[i].at[j], squares);
    const float scale = scale_of_squares(squares, args.width, args.eps, partials);
#pragma unroll
    for (u32 i = 0; i < NORM_QUADS; ++i) {
        const u32 quad = threadIdx.x + i * NORM_THREADS;
        // Whole warps without an element leave.
        if (quad - threadIdx.x % 32 >= quads) break;
        quantize_scaled(args, row, quad, own[i], ((const Floats4*)args.weight)[quad < quads ? quad : 0], scale);
    }
}
