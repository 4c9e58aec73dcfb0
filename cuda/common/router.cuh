// Arguments of a router's kernels, and what they write of normalised rows.
#pragma once
#include "common/quantize.cuh"
#include "common/weight.cuh"

struct RouterProductArgs {
    const float* x;
    Weight weight;
    const float* bias;  // [experts] or null
    float* logits;
    u32* ids;
    float* weights;
    const u32* rows;
    u32* arrivals;  // zero, and zero again in the end: one, or one per group of tokens
    u32 experts;
    u32 top_k;
};

struct RouterNormArgs {
    RouterProductArgs product;
    const float* norm;
    float* normed;
    u8* codes;
    ActivationSums* sums;
    float eps;
    u32 use;  // a RecordUse
};

// A normalised row and its records, where they are wanted: a warp takes 32 quads, from `first` on every `step`-th.
__device__ __forceinline__ void put_out(const RouterNormArgs& args, const Floats4* row, u32 token, u32 quads, u32 first,
                                        u32 step) {
#pragma unroll 1
    for (u32 part = first; part * 32 < quads; part += step) {
        const u32 quad = part * 32 + threadIdx.x % 32;
        // Quads past the end stay for the shuffles.
        const bool live = quad < quads;
        const Floats4 four = live ? row[quad] : Floats4{{0.0f, 0.0f, 0.0f, 0.0f}};
        const u64 at = (u64)token * quads + (live ? quad : 0);
        if (live && args.normed) ((Floats4*)args.normed)[at] = four;
        if (args.codes) {
            const u32 block = live ? quad / 8 : 0;
            quantize_block(four, quad % 8, live, {args.codes, args.sums, token, quads / 8, block, args.use});
        }
    }
}
