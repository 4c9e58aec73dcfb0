// rms_norm: y = x * weight / sqrt(mean(x^2) + eps), row by row.
//
// x, y: [rows, width] f32, weight: [width] f32. Grid: (most rows); 256 threads per row.
// The order of the sum is fixed by the width: thread t adds elements t, t + 256, ...; then a butterfly over each warp,
// then the warps in order. Moves 12 bytes per element (the second read of x hits L2); bound by latency.
#include "common/norm.cuh"

struct RmsNormArgs {
    const float* x;
    const float* weight;
    float* y;
    const u32* rows;
    u32 width;
    float eps;
};

KERNEL(rms_norm_f32, RmsNormArgs, 256) {
    __shared__ float partials[32];
    wait_for_previous_kernel();
    const u32 row = blockIdx.x;
    if (row >= *args.rows) return;
    const float* x = args.x + (u64)row * args.width;
    float* y = args.y + (u64)row * args.width;
    const float scale = rms_scale(x, args.width, args.eps, partials);
    for (u32 i = threadIdx.x; i < args.width; i += 256) y[i] = x[i] * scale * args.weight[i];
}
