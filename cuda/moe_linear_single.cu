// moe_linear for a step of one token, with its neighbours fused (common/single.cuh).
//
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id>, -DRING_BYTES=<size> and a name for each kernel.
//   gated:    y[k] = swiglu(Wg[e] x + bg[e], Wu[e] x + bu[e]) with e = experts[k], chosen from the router's logits where
//             those are given: every CTA chooses for itself, the first one tells the rest of the step.
//             Leaves activation records for the product that reads y, where asked.
//             Grid: CTAs that share the row tiles of the chosen experts; 256 threads.
//   combined: y = sum_k weights[k] (W[e] x[k] + bias[e]) (+ residual). Grid: CTAs that share the row tiles; 256 threads,
//             one expert after the other.
// Dynamic shared memory: 80 bytes per 32 columns and row of x, and the rings. Reads each chosen expert once; bound by memory.
// Weights are on their way before the previous kernel has ended where the experts were chosen earlier. The bits are
// those of router, moe_linear, swiglu, moe_combine, add and linear_quantize one after the other.
#include "common/gated.cuh"
#include "common/quantize_warp.cuh"
#include "common/routing_choice.cuh"
#include "common/single.cuh"

struct MoeLinearGatedArgs {
    Weight gate;
    Weight up;
    SingleInput x;
    u32* experts;            // [top_k]
    const float* logits;     // [expert_count], or null: the experts are chosen already
    float* weights;          // [top_k], with logits
    const u32* tokens;       // live tokens: 0 or 1
    const float* gate_bias;  // [experts, outputs] or null
    const float* up_bias;
    float* y;    // [top_k, outputs], or null where records are all that is wanted
    u8* codes;   // records of y, or null
    ActivationSums* sums;
    u32 outputs;
    u32 top_k;
    u32 expert_count;
    u32 kind;
    float alpha;
    float limit;
};

// An expert id that is in bounds whatever memory holds.
__device__ __forceinline__ u32 expert_at(const u32* experts, u32 k, u32 count) {
    const u32 expert = experts[k];
    return expert < count ? expert : 0;
}

// Most experts of a token.
#define MOST_CHOSEN 32

// Puts the token's experts where the CTA sees them; all threads call it.
__device__ __forceinline__ void find_experts(const MoeLinearGatedArgs& args, u32* chosen) {
    if (threadIdx.x < 32) {
        const u32 lane = threadIdx.x;
        if (args.logits) {
            float weight = 0.0f;
            const float sum = choose_experts(args.logits, args.expert_count, args.top_k, lane,
                                             [&](u32 k, u32 id, float exponential) {
                                                 if (lane != k) return;
                                                 chosen[k] = id < args.expert_count ? id : 0;
                                                 weight = exponential;
                                             });
            if (blockIdx.x == 0 && lane < args.top_k) {
                args.experts[lane] = chosen[lane];
                args.weights[lane] = weight / sum;
            }
        } else if (lane < args.top_k) {
            chosen[lane] = expert_at(args.experts, lane, args.expert_count);
        }
    }
    __syncthreads();
}

KERNEL(MOE_LINEAR_GATED, MoeLinearGatedArgs, SINGLE_THREADS, 3) {
    __shared__ u32 chosen[MOST_CHOSEN];
    wait_for_previous_kernel();
    allow_next_kernel();
    if (*args.tokens == 0) return;
    find_experts(args, chosen);
    const u32 blocks = args.gate.blocks;
    const u32 row_tiles = args.gate.row_tiles;
    const SingleActivations x(1, blocks);
    // Gate and up take turns.
    const auto tile_at = [&](u32 i) { return blockIdx.x + i / 2 * gridDim.x; };
    const auto expert_of = [&](u32 i) { return chosen[tile_at(i) / row_tiles]; };
    float gate = 0.0f;
    single_product<WEIGHT_FORMAT>(
        x, blocks, (args.top_k * row_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x * 2, 2,
        [&](u32 i) {
            const u64 row_tile = (u64)expert_of(i) * row_tiles + tile_at(i) % row_tiles;
            return SinglePass{i % 2 == 0 ? &args.gate : &args.up, row_tile, 0};
        },
        [&] {
            HeldQuads none;
            fill_activations(x, args.x, 1, blocks * 32, none, 0.0f, 0);
            return true;
        },
        [&](u32 i, u32 row, float sum) {
            const u32 output = tile_at(i) % row_tiles * 32 + row;
            if (output >= args.outputs) return;
            const float* bias = i % 2 == 0 ? args.gate_bias : args.up_bias;
            if (bias) sum += bias[(u64)expert_of(i) * args.outputs + output];
            if (i % 2 == 0) {
                gate = sum;
                return;
            }
            const float value = gated(args.kind, args.alpha, args.limit, gate, sum);
            if (args.y) args.y[(u64)(tile_at(i) / row_tiles) * args.outputs + output] = value;
            // The outputs are whole tiles then, and a tile is a record.
            if (args.codes) quantize_warp(value, args.codes, args.sums, tile_at(i));
        });
}

struct MoeLinearCombinedArgs {
    Weight weight;
    SingleInput x;  // top_k rows
    const u32* experts;
    const float* weights;  // [top_k]
    const u32* tokens;     // live tokens: 0 or 1
    const float* bias;     // [experts, outputs] or null
    const float* residual;  // [outputs] or null
    float* y;
    u32 outputs;
    u32 top_k;
    u32 expert_count;
    u32 early;  // the experts were chosen before the previous kernel, so weights need not wait for it
};

KERNEL(MOE_LINEAR_COMBINED, MoeLinearCombinedArgs, SINGLE_THREADS, 3) {
    __shared__ u32 chosen[MOST_CHOSEN];
    if (!args.early) wait_for_previous_kernel();
    const u32 live = *args.tokens;
    if (live > 0 && threadIdx.x < args.top_k) chosen[threadIdx.x] = expert_at(args.experts, threadIdx.x, args.expert_count);
    __syncthreads();
    const u32 blocks = args.weight.blocks;
    const SingleActivations x(args.top_k, blocks);
    // A row tile takes a pass for each expert.
    const u32 tiles = (args.weight.row_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
    const auto tile_at = [&](u32 i) { return blockIdx.x + i / args.top_k * gridDim.x; };
    float combined = 0.0f;
    single_product<WEIGHT_FORMAT>(
        x, blocks, live > 0 ? tiles * args.top_k : 0, args.top_k,
        [&](u32 i) {
            const u32 k = i % args.top_k;
            return SinglePass{&args.weight, live > 0 ? (u64)chosen[k] * args.weight.row_tiles + tile_at(i) : 0, k};
        },
        [&] {
            if (args.early) wait_for_previous_kernel();
            allow_next_kernel();
            if (live == 0) return false;
            HeldQuads none;
            fill_activations(x, args.x, args.top_k, blocks * 32, none, 0.0f, 0);
            return true;
        },
        [&](u32 i, u32 row, float sum) {
            const u32 output = tile_at(i) * 32 + row;
            if (output >= args.outputs) return;
            const u32 k = i % args.top_k;
            if (args.bias) sum += args.bias[(u64)chosen[k] * args.outputs + output];
            combined = fmaf(args.weights[k], sum, k == 0 ? 0.0f : combined);
            if (k + 1 < args.top_k) return;
            args.y[output] = args.residual ? args.residual[output] + combined : combined;
        });
}
