// moe_linear for a step of one token, with its neighbours fused (common/single.cuh).
//
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for each kernel.
//   gated:    y[k] = swiglu(Wg[e] x + bg[e], Wu[e] x + bu[e]) with e = experts[k], chosen from the router's logits where
//             those are given: every CTA chooses for itself, the first one tells the rest of the step.
//             Grid: CTAs that share the row tiles of the chosen experts; 512 threads.
//   combined: y = sum_k weights[k] (W[e] x[k] + bias[e]) (+ residual). Grid: CTAs that share the row tiles; 512 threads, two
//             experts at a time.
// Dynamic shared memory: 80 bytes per 32 columns and row of x. Reads each chosen expert once; bound by memory. The bits are
// those of router, moe_linear, swiglu, moe_combine and add one after the other.
#include "common/gated.cuh"
#include "common/routing_choice.cuh"
#include "common/single.cuh"

// Experts at a time.
#define COMBINED_GROUPS 2

struct MoeLinearGatedArgs {
    Weight gate;
    Weight up;
    const float* x;
    u32* experts;            // [top_k]
    const float* logits;     // [expert_count], or null: the experts are chosen already
    float* weights;          // [top_k], with logits
    const u32* tokens;       // live tokens: 0 or 1
    const float* gate_bias;  // [experts, outputs] or null
    const float* up_bias;
    float* y;  // [top_k, outputs]
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

KERNEL(MOE_LINEAR_GATED, MoeLinearGatedArgs, 2 * GROUP_THREADS, 1) {
    __shared__ u32 chosen[MOST_CHOSEN];
    wait_for_previous_kernel();
    allow_next_kernel();
    if (*args.tokens == 0) return;
    find_experts(args, chosen);
    const u32 blocks = args.gate.blocks;
    const u32 row_tiles = args.gate.row_tiles;
    const SingleActivations x(1, blocks);
    const bool is_up = threadIdx.x >= GROUP_THREADS;
    const auto tile_at = [&](u32 i) { return blockIdx.x + i * gridDim.x; };
    const auto expert_of = [&](u32 i) { return chosen[tile_at(i) / row_tiles]; };
    single_product<WEIGHT_FORMAT, 2>(
        x, blocks, (args.top_k * row_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x,
        [&](u32 i) {
            const u64 row_tile = (u64)expert_of(i) * row_tiles + tile_at(i) % row_tiles;
            return GroupTile{is_up ? &args.up : &args.gate, row_tile, 0};
        },
        [&] {
            fill_activations<2 * GROUP_THREADS>(x, args.x, 1, blocks * 32, 0, 0.0f, 0);
            return true;
        },
        [&](u32 i, u32 row, const float(&sums)[2]) {
            const u32 output = tile_at(i) % row_tiles * 32 + row;
            if (output >= args.outputs) return;
            const u64 bias = (u64)expert_of(i) * args.outputs + output;
            const float gate = args.gate_bias ? sums[0] + args.gate_bias[bias] : sums[0];
            const float up = args.up_bias ? sums[1] + args.up_bias[bias] : sums[1];
            args.y[(u64)(tile_at(i) / row_tiles) * args.outputs + output] =
                gated(args.kind, args.alpha, args.limit, gate, up);
        });
}

struct MoeLinearCombinedArgs {
    Weight weight;
    const float* x;  // [top_k, columns]
    const u32* experts;
    const float* weights;  // [top_k]
    const u32* tokens;     // live tokens: 0 or 1
    const float* bias;     // [experts, outputs] or null
    const float* residual;  // [outputs] or null
    float* y;
    u32 outputs;
    u32 top_k;
    u32 expert_count;
    u32 reserved;
};

KERNEL(MOE_LINEAR_COMBINED, MoeLinearCombinedArgs, COMBINED_GROUPS* GROUP_THREADS, 1) {
    wait_for_previous_kernel();
    allow_next_kernel();
    if (*args.tokens == 0) return;
    const u32 blocks = args.weight.blocks;
    const SingleActivations x(args.top_k, blocks);
    const u32 group = threadIdx.x / GROUP_THREADS;
    // A row tile takes as many passes as it needs for all experts.
    const u32 passes = (args.top_k + COMBINED_GROUPS - 1) / COMBINED_GROUPS;
    const u32 tiles = (args.weight.row_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
    const auto tile_at = [&](u32 i) { return blockIdx.x + i / passes * gridDim.x; };
    float combined = 0.0f;
    single_product<WEIGHT_FORMAT, COMBINED_GROUPS>(
        x, blocks, tiles * passes,
        [&](u32 i) {
            const u32 wanted = i % passes * COMBINED_GROUPS + group;
            const u32 k = wanted < args.top_k ? wanted : 0;
            const u64 expert = expert_at(args.experts, k, args.expert_count);
            return GroupTile{&args.weight, expert * args.weight.row_tiles + tile_at(i), k};
        },
        [&] {
            fill_activations<COMBINED_GROUPS * GROUP_THREADS>(x, args.x, args.top_k, blocks * 32, 0, 0.0f, 0);
            return true;
        },
        [&](u32 i, u32 row, const float(&sums)[COMBINED_GROUPS]) {
            const u32 output = tile_at(i) * 32 + row;
            if (i % passes == 0) combined = 0.0f;
#pragma unroll
            for (u32 j = 0; j < COMBINED_GROUPS; ++j) {
                const u32 k = i % passes * COMBINED_GROUPS + j;
                if (k >= args.top_k || output >= args.outputs) continue;
                const u64 expert = expert_at(args.experts, k, args.expert_count);
                const float sum = args.bias ? sums[j] + args.bias[expert * args.outputs + output] : sums[j];
                combined = fmaf(args.weights[k], sum, combined);
            }
            if ((i + 1) % passes != 0 || output >= args.outputs) return;
            args.y[output] = args.residual ? args.residual[output] + combined : combined;
        });
}
