// Arguments and stores of the kernels of linear.
#pragma once
#include "common/product.cuh"

struct LinearArgs {
    Weight weight;
    Activations x;
    const float* bias;      // [outputs] or null
    const float* residual;  // as y, or null; may be y itself
    float* y;
    const u32* columns;  // live rows of the set
    u32 outputs;
    u32 reserved;
};

__device__ __forceinline__ void store_output(const LinearArgs& args, u32 output, u32 column, u32 columns, float sum) {
    if (output >= args.outputs || column >= columns) return;
    if (args.bias) sum += args.bias[output];
    const u64 index = (u64)column * args.outputs + output;
    if (args.residual) sum += args.residual[index];
    args.y[index] = sum;
}
