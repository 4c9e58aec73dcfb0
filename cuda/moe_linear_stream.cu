// moe_linear for steps of 2 to 64 tokens whose activations fit into shared memory (common/batch.cuh).
//
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id>, -DRING_BYTES_8=<size>, -DRING_BYTES_TWIN_16=<size> and a name
// for each kernel.
//   stream, 8, twin 16: y[t][k] = weight[e] x + bias[e] with e = experts[t][k].
//   gated, 8, twin 16:  activation records of swiglu(Wg[e] x + bg[e], Wu[e] x + bu[e]), a row tile being a block of them.
// x: activations made before, one row per token or per pair. Every CTA finds the pairs of all experts and cuts them into
// groups of 8 or 16; it takes an equal share of all groups' row tiles. Grid: as many CTAs as stay resident; 256 or 512
// threads, `BatchMemory` and `PairGroups` of dynamic shared memory. Reads each touched expert once from memory, again
// from L2 for each group beyond the first; bound by memory, with many columns by the scaling. Weights are on their way before
// the previous kernel has ended where the experts were chosen earlier. The bits are those of moe_linear, swiglu and
// linear_quantize one after the other.
#include "common/batch.cuh"
#include "common/gated.cuh"
#include "common/pair_groups.cuh"
#include "common/product.cuh"
#include "common/quantize_warp.cuh"

// One team and 8 columns, of which two CTAs share a multiprocessor; two teams and 16 columns have it alone.
typedef BatchMemory<WEIGHT_FORMAT, 1, 8> Memory8;
typedef BatchMemory<WEIGHT_FORMAT, 2, 16> MemoryTwin16;
static_assert(Memory8::RING == RING_BYTES_8 && MemoryTwin16::RING == RING_BYTES_TWIN_16,
              "host and device disagree on the rings' size");

struct MoeLinearStreamArgs {
    Weight weight;
    Activations x;
    Routing routing;
    const float* bias;  // [experts, outputs] or null
    float* y;           // [tokens * top_k, outputs]
    u32 outputs;
    u32 early;  // the experts were chosen before the previous kernel, so weights need not wait for it
};

struct MoeLinearStreamGatedArgs {
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
    u32 early;
};

// A CTA's share of the tasks of all groups: what both operations have in common. `PASSES` weights of `row_tiles` tiles.
template <class M, int PASSES, class WeightOf, class Load, class Finish>
__device__ __forceinline__ void multiply_pairs(const Weight& shape, const Activations& x, const Routing& routing, bool early,
                                               const WeightOf& weight_of, const Load& load, const Finish& finish) {
    const u32 blocks = shape.blocks;
    const u32 row_tiles = shape.row_tiles;
    const M memory(blocks);
    PairGroups& pairs = *(PairGroups*)memory.rest;
    static_assert(sizeof(PairCounts) <= SLICES * M::TEAMS * M::COLUMNS * 32 * sizeof(float), "counts take the sums' place");
    const u32 tokens = *routing.tokens;
    if (!early) wait_for_previous_kernel();
    const u32 groups = find_groups<M::THREADS>(routing, tokens, M::COLUMNS, pairs, *(PairCounts*)memory.partial);
    const u32 items = (row_tiles + M::TEAMS - 1) / M::TEAMS;
    const u32 tasks = groups * items;
    batch_product<WEIGHT_FORMAT, PASSES>(
        memory, blocks, (u32)((u64)blockIdx.x * tasks / gridDim.x), (u32)((u64)(blockIdx.x + 1) * tasks / gridDim.x), items,
        [&](u32 group, u32 tile, u32 pass) {
            const u64 first = (u64)pairs.group(group).expert * row_tiles;
            return SinglePass{&weight_of(pass), first + (tile < row_tiles ? tile : row_tiles - 1)};
        },
        [&] {
            if (early) wait_for_previous_kernel();
            allow_next_kernel();
        },
        [&](u32 group) {
            const PairGroup own = pairs.group(group);
            memory.copy_columns(x.codes, x.sums, own.count, blocks,
                                [&](u32 column) { return activation_row(routing, pairs.order[own.first + column]); });
            return own.count;
        },
        [&](u32 group, u32 tile, u32 pass, u32) {
            return load((u64)pairs.group(group).expert, tile < row_tiles ? tile : row_tiles - 1, pass);
        },
        [&](float held, u32 group, u32 tile, u32 pass, u32 index, u32 column, float sum) {
            if (tile >= row_tiles) return;
            finish(held, pairs.order[pairs.group(group).first + column], tile, pass, index, sum);
        });
}

template <class M>
__device__ __forceinline__ void moe_stream(const MoeLinearStreamArgs& args) {
    const u32 lane = threadIdx.x % 32;
    multiply_pairs<M, 1>(
        args.weight, args.x, args.routing, args.early != 0, [&](u32) -> const Weight& { return args.weight; },
        [&](u64 expert, u32 tile, u32) {
            const u32 output = tile * 32 + lane;
            return args.bias && output < args.outputs ? args.bias[expert * args.outputs + output] : 0.0f;
        },
        [&](float bias, u32 pair, u32 tile, u32, u32, float sum) {
            const u32 output = tile * 32 + lane;
            if (output < args.outputs) args.y[(u64)pair * args.outputs + output] = args.bias ? sum + bias : sum;
        });
}

template <class M>
__device__ __forceinline__ void moe_stream_gated(const MoeLinearStreamGatedArgs& args) {
    const u32 lane = threadIdx.x % 32;
    const u32 row_tiles = args.gate.row_tiles;
    float gate[M::PER_WARP];
    multiply_pairs<M, 2>(
        args.gate, args.x, args.routing, args.early != 0,
        [&](u32 pass) -> const Weight& { return pass == 0 ? args.gate : args.up; },
        [&](u64 expert, u32 tile, u32 pass) {
            const float* biases = pass == 0 ? args.gate_bias : args.up_bias;
            return biases ? biases[(expert * row_tiles + tile) * 32 + lane] : 0.0f;
        },
        [&](float bias, u32 pair, u32 tile, u32 pass, u32 index, float sum) {
            if (pass == 0 ? args.gate_bias != 0 : args.up_bias != 0) sum += bias;
            if (pass == 0) {
                gate[index] = sum;
                return;
            }
            const float value = gated(args.kind, args.alpha, args.limit, gate[index], sum);
            quantize_warp(value, args.codes, args.sums, (u64)pair * row_tiles + tile);
        });
}

KERNEL(MOE_LINEAR_STREAM_8, MoeLinearStreamArgs, 256, 2) { moe_stream<Memory8>(args); }
KERNEL(MOE_LINEAR_STREAM_TWIN_16, MoeLinearStreamArgs, 512, 1) { moe_stream<MemoryTwin16>(args); }
KERNEL(MOE_LINEAR_STREAM_GATED_8, MoeLinearStreamGatedArgs, 256, 2) { moe_stream_gated<Memory8>(args); }
KERNEL(MOE_LINEAR_STREAM_GATED_TWIN_16, MoeLinearStreamGatedArgs, 512, 1) { moe_stream_gated<MemoryTwin16>(args); }
