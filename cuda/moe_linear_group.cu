// moe_linear for prefill on 9.0a: y[t][k] = weight[e] x + bias[e] with e = experts[t][k], weight in any quantised format.
//
// x: activations made by linear_quantize, planes apart, one row per token or per pair; y: [tokens * top_k, outputs] f32.
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for the kernel. Grid (column groups, ceil(row tiles /
// 6), experts) over pairs sorted by moe_linear_route, so that CTAs of one expert's rows are neighbours; 384 threads,
// GroupShared of shared memory. Bound by the scaling. The bits are those of moe_linear.cu.
#include "common/group_product.cuh"
#include "common/moe_linear_args.cuh"

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
        if (threadIdx.x < GROUP_COLUMNS) {
            const u32 place = first + threadIdx.x;
            shared.pairs[threadIdx.x] = place < end ? args.routing.order[place] : NO_ROW;
            shared.rows[threadIdx.x] = activation_row(args.routing, args.routing.order[place < end ? place : first]);
        }
        __syncthreads();
        group_product<WEIGHT_FORMAT>(args.weight, (u64)expert * args.weight.row_tiles + tile, args.weight.row_tiles - tile, args.x,
                                     end - first, shared, [&](u32 row, u32 column, float sum) {
                                         store_output(args, expert, tile * 32 + row, shared.pairs[column], sum);
                                     });
    }
}
