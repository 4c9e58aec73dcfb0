// moe_linear with plain-float weights: y[t][k] = weight[e] x + bias[e] with e = experts[t][k].
//
// x: [tokens or pairs, columns] f32; y: [tokens * top_k, outputs] f32; weight: row tiles of 8 (common/weight.cuh).
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for the kernel.
// Grid: (row tiles, most pairs), 256 threads, one pair per CTA. f32 fused multiply-adds; reads an expert once per pair,
// from L2 where several pairs share it; bound by memory. Arithmetic: common/plain.cuh.
#include "common/plain.cuh"
#include "common/routing.cuh"

struct MoeLinearPlainArgs {
    Weight weight;
    const float* x;
    Routing routing;
    const float* bias;  // [experts, outputs] or null
    float* y;
    u32 outputs;
    u32 reserved;
};

KERNEL(MOE_LINEAR_PLAIN, MoeLinearPlainArgs, PLAIN_THREADS) {
    __shared__ PlainShared<1> shared;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 pair = blockIdx.y;
    if (pair >= *args.routing.tokens * args.routing.top_k) return;
    const u32 expert = args.routing.experts[pair];
    if (expert >= args.routing.expert_count) return;
    plain_product<WEIGHT_FORMAT, 1>(
        args.weight, (u64)expert * args.weight.row_tiles + blockIdx.x, args.x, shared,
        [&](u32) { return activation_row(args.routing, pair); },
        [&](u32 row, u32, float sum) {
            const u32 output = blockIdx.x * 8 + row;
            if (output >= args.outputs) return;
            if (args.bias) sum += args.bias[(u64)expert * args.outputs + output];
            args.y[(u64)pair * args.outputs + output] = sum;
        });
}
