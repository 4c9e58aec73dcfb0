// moe_linear of gate and up with their gated activation, for steps of few tokens: activation records of
// swiglu(Wg[e] x + bg[e], Wu[e] x + bu[e]) with e = experts[t][k].
//
// x: activations made before, one row per token; codes, sums: [tokens * top_k, outputs / 32] records
// (common/activation.cuh), outputs a multiple of 32, so that a row tile is a block.
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for the kernel.
// Grid: (row tiles, experts), 256 threads: a CTA finds the pairs of its expert and takes them 8 at a time through both
// weights. Bound by memory. The bits are those of moe_linear, swiglu and linear_quantize
// one after the other.
#include "common/gated.cuh"
#include "common/product.cuh"
#include "common/quantize_warp.cuh"
#include "common/routing.cuh"

struct MoeLinearSplitGatedArgs {
    Weight gate;
    Weight up;
    Activations x;
    Routing routing;
    const float* gate_bias;  // [experts, outputs] or null
    const float* up_bias;
    u8* codes;
    ActivationSums* sums;
    u32 kind;
    float alpha;
    float limit;
    u32 reserved;
};

// Formats with scales per half block need more than half of the registers.
KERNEL(MOE_LINEAR_SPLIT_GATED, MoeLinearSplitGatedArgs, PRODUCT_THREADS, (Codec<WEIGHT_FORMAT>::HALVES ? 1 : 2)) {
    __shared__ SplitShared<1> shared;
    __shared__ ScannedPairs found;
    const u32 expert = blockIdx.y;
    const u32 row_tiles = args.gate.row_tiles;
    const u64 row_tile = (u64)expert * row_tiles + blockIdx.x;
    const u32 tokens = *args.routing.tokens;
    // Super-blocks' records would cost more registers than there are.
    const bool early = !Codec<WEIGHT_FORMAT>::SUPER && wants_nearly_all(args.routing, tokens);
    Window<WEIGHT_FORMAT> window;
    if (early) open_slice(window, args.gate, row_tile);
    wait_for_previous_kernel();
    allow_next_kernel();
    scan_pairs(args.routing, tokens, expert, found);
    const u64 bias = row_tile * 32 + threadIdx.x % 32;
    for (u32 first = 0; first < found.count; first += 8) {
        const u32 columns = found.count - first;
        const auto row_of = [&](u32 column) { return activation_row(args.routing, found.pairs[first + column]); };
        if (first > 0 || !early) open_slice(window, args.gate, row_tile);
        // Each thread gets one sum of either product: the same row and column.
        float gate = 0.0f;
        split_product<WEIGHT_FORMAT, 1>(window, args.gate, row_tile, args.x, columns, shared, row_of,
                                        [&](u32, u32, float sum) { gate = sum; });
        open_slice(window, args.up, row_tile);
        split_product<WEIGHT_FORMAT, 1>(
            window, args.up, row_tile, args.x, columns, shared, row_of, [&](u32, u32 column, float sum) {
                // A whole warp holds one column.
                if (column >= columns) return;
                if (args.gate_bias) gate += args.gate_bias[bias];
                if (args.up_bias) sum += args.up_bias[bias];
                const float value = gated(args.kind, args.alpha, args.limit, gate, sum);
                const u64 record = (u64)found.pairs[first + column] * row_tiles + blockIdx.x;
                quantize_warp(value, args.codes, args.sums, record);
            });
    }
}
