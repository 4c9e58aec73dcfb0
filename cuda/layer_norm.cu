// layer_norm: y = (x - mean) / sqrt(var + eps) * weight + bias, row by row, population variance in two passes.
//
// x, y: [rows, width] f32, weight, bias: [width] f32. Grid: (most rows); 256 threads per row.
// The order of the sums is fixed by the width, as in rms_norm. Moves 16 bytes per element; bound by latency.
#include "common/reduce.cuh"

struct LayerNormArgs {
    const float* x;
    const float* weight;
    const float* bias;
    float* y;
    const u32* rows;
    u32 width;
    float eps;
};

KERNEL(layer_norm_f32, LayerNormArgs, 256) {
    __shared__ float partials[32];
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 row = blockIdx.x;
    if (row >= *args.rows) return;
    const float* x = args.x + (u64)row * args.width;
    float* y = args.y + (u64)row * args.width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < args.width; i += 256) sum += x[i];
    const float mean = cta_sum<256>(sum, partials) / (float)args.width;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < args.width; i += 256) {
        const float centred = x[i] - mean;
        squares = fmaf(centred, centred, squares);
    }
    const float variance = cta_sum<256>(squares, partials) / (float)args.width;
    const float scale = 1.0f / sqrtf(variance + args.eps);
    for (u32 i = threadIdx.x; i < args.width; i += 256) {
        y[i] = (x[i] - mean) * scale * args.weight[i] + args.bias[i];
    }
}
