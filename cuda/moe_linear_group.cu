// moe_linear for prefill on 9.0a: y[t][k] = weight[e] x + bias[e] with e = experts[t][k], weight in any quantised format; and
// swiglu(Wg[e] x + bg[e], Wu[e] x + bu[e]) as activation records.
//
// x: activation records for warpgroups, one row per token or per pair; y: [tokens * top_k, outputs] f32; codes, sums:
// [tokens * top_k, outputs / 32] such records.
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for each kernel. Over pairs sorted by
// moe_linear_route; grid (column groups, row groups of 6 tiles, gated: 3, experts), so that CTAs that read the same rows are
// neighbours; fuller experts loop. 512 threads, GroupShared of shared memory. Bound as group_product.cuh says. The bits are
// those of moe_linear.cu, swiglu.cu and linear_quantize.cu.
#include "common/group_gated.cuh"
#include "common/moe_linear_args.cuh"

// The places of an expert's pairs among the sorted ones, as this CTA takes them.
__device__ __forceinline__ ColumnGroups pairs_of(const Routing& routing, u32 expert) {
    const u32 first = routing.offsets[expert] + blockIdx.x * GROUP_COLUMNS;
    return {first, routing.offsets[expert + 1], gridDim.x * GROUP_COLUMNS, GROUP_COLUMNS};
}

// The activation row of the pair at `place` of the sorted ones, which is column `column` of a group.
template <int FORMAT>
__device__ __forceinline__ u32 open_pair(GroupShared<FORMAT>& shared, const Routing& routing, u32 place, u32 column) {
    const u32 pair = routing.order[place];
    shared.pairs[column] = pair;
    return activation_row(routing, pair);
}

KERNEL(MOE_LINEAR_GROUP, MoeLinearArgs, GROUP_THREADS, 1) {
    DYNAMIC_SHARED(GroupMemory, memory);
    GroupShared<WEIGHT_FORMAT>& shared = *(GroupShared<WEIGHT_FORMAT>*)memory;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 expert = blockIdx.z;
    const u32 tile = blockIdx.y * GROUP_TILES;
    const u64 first_tile = (u64)expert * args.weight.row_tiles + tile;
    const GroupRows rows = {args.weight.row_tiles - tile};
    group_products<WEIGHT_FORMAT>(
        args.weight.blocks, args.x, pairs_of(args.routing, expert), rows.active(), shared,
        [&](u32 own) { return tile_planes<WEIGHT_FORMAT>(args.weight, first_tile + rows.existing(own)); },
        [&](u32 place, u32 column) { return open_pair(shared, args.routing, place, column); },
        [&](u32, u32 live) {
            const u32 output = tile * 32 + rows.own_row();
            const float* bias = args.bias ? args.bias + (u64)expert * args.outputs : nullptr;
            const OutputRow own[2] = {{args.y, nullptr, bias, output, args.outputs},
                                      {args.y, nullptr, bias, output + 8, args.outputs}};
            rows.store_sums(shared, live, args.outputs, own, [&](u32 column) { return shared.pairs[column]; });
        },
        [](u32, u32) {});
}

struct MoeLinearGroupGatedArgs {
    Activations x;
    Routing routing;
    GatedProduct product;  // biases: [experts, outputs]
};

KERNEL(MOE_LINEAR_GROUP_GATED, MoeLinearGroupGatedArgs, GROUP_THREADS, 1) {
    DYNAMIC_SHARED(GroupMemory, memory);
    GroupShared<WEIGHT_FORMAT>& shared = *(GroupShared<WEIGHT_FORMAT>*)memory;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 expert = blockIdx.z;
    const u32 row_tiles = args.product.gate.row_tiles;
    const u32 tile = blockIdx.y * GatedRows::TILES;
    const GatedRows rows = {(u64)expert * row_tiles, tile, row_tiles - tile};
    const auto record_of = [&](u32 column) { return shared.pairs[column]; };
    group_products<WEIGHT_FORMAT>(
        args.product.gate.blocks, args.x, pairs_of(args.routing, expert), true, shared,
        [&](u32 own) { return rows.planes<WEIGHT_FORMAT>(args.product, own); },
        [&](u32 place, u32 column) { return open_pair(shared, args.routing, place, column); },
        [&](u32, u32 live) { rows.make_records(args.product, shared, live, record_of); },
        [&](u32, u32 live) { rows.store_records(args.product, shared, live, record_of); });
}
