// moe_linear for prefill on 9.0a: y[t][k] = weight[e] x + bias[e] with e = experts[t][k], weight in any quantised format; and
// swiglu(Wg[e] x + bg[e], Wu[e] x + bu[e]) as activation records.
//
// x: activation records, high and low bytes apart, one row per token or per pair; y: [tokens * top_k, outputs] f32; codes,
// sums: [tokens * top_k, outputs / 32] records, apart again.
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for each kernel. Over pairs sorted by
// moe_linear_route; grid (column groups, row groups of 6 tiles, gated: 3, experts), so that CTAs that read the same rows are
// neighbours; fuller experts loop. 384 threads, GroupShared of shared memory. Bound by the scaling. The bits are those of
// moe_linear.cu, swiglu.cu and linear_quantize.cu.
#include "common/group_product.cuh"
#include "common/moe_linear_args.cuh"

// The columns from place `first` of the sorted pairs on; fills `shared.pairs` and `shared.rows`.
template <int FORMAT>
__device__ __forceinline__ u32 open_pairs(GroupShared<FORMAT>& shared, const Routing& routing, u32 first, u32 end) {
    const u32 live = end - first < GROUP_COLUMNS ? end - first : GROUP_COLUMNS;
    if (threadIdx.x < GROUP_COLUMNS) {
        const u32 pair = routing.order[first + (threadIdx.x < live ? threadIdx.x : 0)];
        shared.pairs[threadIdx.x] = pair;
        shared.rows[threadIdx.x] = activation_row(routing, pair);
    }
    __syncthreads();
    return live;
}

KERNEL(MOE_LINEAR_GROUP, MoeLinearArgs, GROUP_THREADS, 1) {
    DYNAMIC_SHARED(u8, memory);
    GroupShared<WEIGHT_FORMAT>& shared = *(GroupShared<WEIGHT_FORMAT>*)memory;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 expert = blockIdx.z;
    const u32 end = args.routing.offsets[expert + 1];
    const u32 tile = blockIdx.y * GROUP_TILES;
    for (u32 first = args.routing.offsets[expert] + blockIdx.x * GROUP_COLUMNS; first < end;
         first += gridDim.x * GROUP_COLUMNS) {
        const u32 live = open_pairs<WEIGHT_FORMAT>(shared, args.routing, first, end);
        const u64 first_tile = (u64)expert * args.weight.row_tiles + tile;
        group_product<WEIGHT_FORMAT>(args.weight, first_tile, args.weight.row_tiles - tile, args.x, live, shared,
                                     [&](u32 row, u32 column, float sum) {
                                         store_output(args, expert, tile * 32 + row, shared.pairs[column], sum);
                                     });
    }
}

struct MoeLinearGroupGatedArgs {
    Activations x;
    Routing routing;
    GatedProduct product;  // biases: [experts, outputs]
};

KERNEL(MOE_LINEAR_GROUP_GATED, MoeLinearGroupGatedArgs, GROUP_THREADS, 1) {
    DYNAMIC_SHARED(u8, memory);
    GroupShared<WEIGHT_FORMAT>& shared = *(GroupShared<WEIGHT_FORMAT>*)memory;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 expert = blockIdx.z;
    const u32 end = args.routing.offsets[expert + 1];
    const u32 row_tiles = args.product.gate.row_tiles;
    const u32 tile = blockIdx.y * (GROUP_TILES / 2);
    for (u32 first = args.routing.offsets[expert] + blockIdx.x * GROUP_COLUMNS; first < end;
         first += gridDim.x * GROUP_COLUMNS) {
        const u32 live = open_pairs<WEIGHT_FORMAT>(shared, args.routing, first, end);
        gated_product<WEIGHT_FORMAT>(args.product, (u64)expert * row_tiles, tile, row_tiles - tile, args.x, live, shared,
                                     [&](u32 column) { return shared.pairs[column]; });
    }
}
