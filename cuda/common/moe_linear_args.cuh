// Arguments and stores of the kernels of moe_linear.
#pragma once
#include "common/product.cuh"
#include "common/routing.cuh"

struct MoeLinearArgs {
    Weight weight;
    Activations x;
    Routing routing;
    const float* bias;  // [experts, outputs] or null
    float* y;
    u32 outputs;
    u32 reserved;
};

__device__ __forceinline__ void store_output(const MoeLinearArgs& args, u32 expert, u32 output, u32 pair, float sum) {
    if (output >= args.outputs || pair == NO_ROW) return;
    if (args.bias) sum += args.bias[(u64)expert * args.outputs + output];
    args.y[(u64)pair * args.outputs + output] = sum;
}
