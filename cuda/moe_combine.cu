// moe_combine: y[t][i] = sum_k weights[t][k] * x[t][k][i], k ascending.
//
// x: [tokens, top_k, width] f32, weights: [tokens, top_k] f32, y: [tokens, width] f32.
// Grid: (ceil(width / 256), most tokens); one thread per output element.
// Moves 4 (top_k + 1) bytes per output element; bound by memory.
#include "common/types.cuh"

struct MoeCombineArgs {
    const float* x;
    const float* weights;
    float* y;
    const u32* rows;
    u32 width;
    u32 top_k;
};

KERNEL(moe_combine_f32, MoeCombineArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = blockIdx.y;
    if (row >= *args.rows || column >= args.width) return;
    float sum = 0.0f;
    for (u32 k = 0; k < args.top_k; ++k) {
        const u64 expert = (u64)row * args.top_k + k;
        sum = fmaf(args.weights[expert], args.x[expert * args.width + column], sum);
    }
    args.y[(u64)row * args.width + column] = sum;
}
