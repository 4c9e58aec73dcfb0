// rms_norm whose result is read by products: the activation records of y = x * weight / sqrt(mean(x^2) + eps).
//
// x: [rows, width] f32, weight: [width] f32, width a multiple of 32; codes, sums: [rows, width / 32] records
// (common/activation.cuh); y: [rows, width] f32 where something else reads it too, or null.
// Grid: (most rows); 512 threads per row. Thread t adds the squares of quads t, t + 512, ..., element by element; then a
// butterfly over each warp, then the warps in order. Moves 8 bytes in and 2.5 (or 6.5) out per element; bound by latency,
// so the row and the weights of up to 8192 elements wait in registers.
#include "common/quantize.cuh"
#include "common/reduce.cuh"

#define NORM_THREADS 512
#define NORM_HELD 4

struct RmsNormQuantizeArgs {
    const float* x;
    const float* weight;
    float* y;
    u8* codes;
    ActivationSums* sums;
    const u32* rows;
    u32 width;
    float eps;
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
    quantize_block(y, quad % 8, live, (u32*)(args.codes + at / 8 * ACTIVATION_CODE_BYTES), args.sums + at / 8);
}

KERNEL(rms_norm_quantize_f32, RmsNormQuantizeArgs, NORM_THREADS) {
    __shared__ float partials[32];
    const u32 quads = args.width / 4;
    const Floats4* weights = (const Floats4*)args.weight;
    Floats4 x[NORM_HELD], weight[NORM_HELD];
#pragma unroll
    for (int i = 0; i < NORM_HELD; ++i) {
        const u32 quad = threadIdx.x + i * NORM_THREADS;
        x[i] = {{0.0f, 0.0f, 0.0f, 0.0f}};
        weight[i] = x[i];
        if (quad < quads) weight[i] = weights[quad];
    }
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 row = blockIdx.x;
    if (row >= *args.rows) return;
    const Floats4* source = (const Floats4*)(args.x + (u64)row * args.width);
#pragma unroll
    for (int i = 0; i < NORM_HELD; ++i) {
        const u32 quad = threadIdx.x + i * NORM_THREADS;
        if (quad < quads) x[i] = source[quad];
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < NORM_HELD; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum = fmaf(x[i].at[j], x[i].at[j], sum);
    for (u32 quad = threadIdx.x + NORM_HELD * NORM_THREADS; quad < quads; quad += NORM_THREADS) {
        const Floats4 four = source[quad];
#pragma unroll
        for (int j = 0; j < 4; ++j) sum = fmaf(four.at[j], four.at[j], sum);
    }
    const float mean = cta_sum<NORM_THREADS>(sum, partials) / (float)args.width;
    const float scale = 1.0f / sqrtf(mean + args.eps);
#pragma unroll
    for (int i = 0; i < NORM_HELD; ++i) {
        const u32 quad = threadIdx.x + i * NORM_THREADS;
        if (quad - threadIdx.x % 32 < quads) quantize_scaled(args, row, quad, x[i], weight[i], scale);
    }
    for (u32 first = NORM_HELD * NORM_THREADS; first < quads; first += NORM_THREADS) {
        const u32 quad = first + threadIdx.x;
        const u32 held = quad < quads ? quad : 0;
        if (quad - threadIdx.x % 32 < quads) quantize_scaled(args, row, quad, source[held], weights[held], scale);
    }
}
