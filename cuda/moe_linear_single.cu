// moe_linear for a step of one token, with its neighbours fused (common/single.cuh).
//
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id>, -DRING_BYTES=<size> and a name for each kernel.
//   gated:    y[k] = swiglu(Wg[e] x + bg[e], Wu[e] x + bu[e]) with e = experts[k], chosen from the router's logits where
//             those are given: every CTA chooses for itself, the first one tells the rest of the step.
//             Leaves activation records for the product that reads y, where asked.
//             Grid: (CTAs that share the row tiles, top_k); 256 threads.
//   combined: y = sum_k weights[k] (W[e] x[k] + bias[e]) (+ residual). Grid: (CTAs that share the row tiles, top_k);
//             256 threads. The last expert's CTA to arrive at a row tile adds them in order.
// Dynamic shared memory: 80 bytes per 32 columns, and the rings. Reads each chosen expert once; bound by memory.
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

// CTAs that share a multiprocessor: four where 64 registers are enough.
#define FORMAT_CTAS (WEIGHT_FORMAT == FORMAT_MXFP4 ? 4 : WEIGHT_FORMAT == FORMAT_Q2_K ? 2 : 3)

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

KERNEL(MOE_LINEAR_GATED, MoeLinearGatedArgs, SINGLE_THREADS, FORMAT_CTAS) {
    __shared__ u32 chosen[MOST_CHOSEN];
    const u32 blocks = args.gate.blocks;
    const SingleActivations x(blocks);
    const u32 live = *args.tokens;
    wait_for_previous_kernel();
    allow_next_kernel();
    if (live == 0) return;
    HeldRecords held;
    held.load(args.x, blocks);
    find_experts(args, chosen);
    const u32 k = blockIdx.y;
    const u64 expert = chosen[k];
    const u32 row_tiles = args.gate.row_tiles;
    // Gate and up take turns.
    const auto tile_at = [&](u32 i) { return blockIdx.x + i / 2 * gridDim.x; };
    float gate = 0.0f;
    const auto of_expert = [&](const float* biases) { return biases ? biases + expert * args.outputs : biases; };
    __shared__ float first_rows[2][32];
    FirstRows gate_bias(first_rows[0]);
    FirstRows up_bias(first_rows[1]);
    gate_bias.load(of_expert(args.gate_bias), tile_at(0) * 32, args.outputs);
    up_bias.load(of_expert(args.up_bias), tile_at(0) * 32, args.outputs);
    single_product<WEIGHT_FORMAT, RING_BYTES>(
        x, blocks, (row_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x * 2, 2,
        [&](u32 i) { return SinglePass{i % 2 == 0 ? &args.gate : &args.up, expert * row_tiles + tile_at(i)}; },
        [&] {
            HeldQuads none;
            gate_bias.keep();
            up_bias.keep();
            fill_activations(x, args.x, blocks, held, none, 0.0f, 0);
            return true;
        },
        [&](u32 i, u32 row, float sum) {
            const u32 output = tile_at(i) * 32 + row;
            if (output >= args.outputs) return;
            if (i % 2 == 0) {
                gate = args.gate_bias ? sum + gate_bias.of(i / 2, row, of_expert(args.gate_bias), output) : sum;
                return;
            }
            if (args.up_bias) sum += up_bias.of(i / 2, row, of_expert(args.up_bias), output);
            const float value = gated(args.kind, args.alpha, args.limit, gate, sum);
            if (args.y) args.y[k * args.outputs + output] = value;
            // The outputs are whole tiles then, and a tile is a record.
            if (args.codes) quantize_warp(value, args.codes, args.sums, k * row_tiles + tile_at(i));
        });
}

struct MoeLinearCombinedArgs {
    Weight weight;
    SingleInput x;  // [top_k, columns]
    const u32* experts;
    const float* weights;  // [top_k]
    const u32* tokens;     // live tokens: 0 or 1
    const float* bias;     // [experts, outputs] or null
    const float* residual;  // [outputs] or null
    float* y;
    float* products;  // [top_k, outputs]
    u32* arrivals;    // [row tiles], zero, and zero again in the end
    u32 outputs;
    u32 top_k;
    u32 expert_count;
    u32 early;  // the experts were chosen before the previous kernel, so weights need not wait for it
};

KERNEL(MOE_LINEAR_COMBINED, MoeLinearCombinedArgs, SINGLE_THREADS, FORMAT_CTAS) {
    const u32 blocks = args.weight.blocks;
    const SingleActivations x(blocks);
    const u32 k = blockIdx.y;
    const u32 live = *args.tokens;
    if (!args.early) wait_for_previous_kernel();
    const u64 expert = live > 0 ? expert_at(args.experts, k, args.expert_count) : 0;
    const auto tile_at = [&](u32 i) { return blockIdx.x + i * gridDim.x; };
    const auto of_expert = [&](const float* biases) { return biases ? biases + expert * args.outputs : biases; };
    __shared__ float first_rows[32];
    FirstRows bias(first_rows);
    bias.load(of_expert(args.bias), tile_at(0) * 32, args.outputs);
    SingleInput own = args.x;
    if (own.codes) {
        own.codes += (u64)k * blocks * ACTIVATION_CODE_BYTES;
        own.sums += k * blocks;
    }
    own.x += (u64)k * blocks * 32;
    single_product<WEIGHT_FORMAT, RING_BYTES>(
        x, blocks, live > 0 ? (args.weight.row_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x : 0, 1,
        [&](u32 i) { return SinglePass{&args.weight, expert * args.weight.row_tiles + tile_at(i)}; },
        [&] {
            if (args.early) wait_for_previous_kernel();
            allow_next_kernel();
            if (live == 0) return false;
            HeldRecords held;
            held.load(own, blocks);
            bias.keep();
            HeldQuads none;
            fill_activations(x, own, blocks, held, none, 0.0f, 0);
            return true;
        },
        [&](u32 i, u32 row, float sum) {
            const u32 output = tile_at(i) * 32 + row;
            const bool exists = output < args.outputs;
            if (exists) {
                if (args.bias) sum += bias.of(i, row, of_expert(args.bias), output);
                args.products[k * args.outputs + output] = sum;
            }
            // The last expert's warp to arrive adds them all.
            __threadfence();
            __syncwarp();
            u32 before = 0;
            if (row == 0) before = atomicAdd(args.arrivals + tile_at(i), 1u);
            if (__shfl_sync(0xffffffffu, before, 0) != args.top_k - 1) return;
            __threadfence();
            if (row == 0) args.arrivals[tile_at(i)] = 0;
            if (!exists) return;
            float combined = 0.0f;
#pragma unroll 4
            for (u32 j = 0; j < args.top_k; ++j) {
                combined = fmaf(args.weights[j], load_fresh(args.products + j * args.outputs + output), combined);
            }
            args.y[output] = args.residual ? args.residual[output] + combined : combined;
        });
}
