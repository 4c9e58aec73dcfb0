// linear for prefill on 9.0a: y[t][o] = sum_i weight[o][i] x[t][i] + bias[o] (+ residual[t][o]), weight in any quantised
// format.
//
// x: activations made by linear_quantize, planes apart; weight: tiles (common/weight.cuh); y: [rows of the set, outputs] f32.
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for the kernel. Grid (ceil(row tiles / 6), ceil(most
// columns / 128)), 384 threads, GroupShared of shared memory. Bound by the scaling. The bits are those of linear.cu.
#include "common/group_product.cuh"
#include "common/linear_args.cuh"

KERNEL(LINEAR_GROUP, LinearArgs, GROUP_THREADS, 1) {
    DYNAMIC_SHARED(u8, memory);
    GroupShared<WEIGHT_FORMAT>& shared = *(GroupShared<WEIGHT_FORMAT>*)memory;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 columns = *args.columns;
    const u32 first = blockIdx.y * GROUP_COLUMNS;
    if (first >= columns) return;
    if (threadIdx.x < GROUP_COLUMNS) {
        shared.rows[threadIdx.x] = first + threadIdx.x < columns ? first + threadIdx.x : first;
    }
    __syncthreads();
    const u32 tile = blockIdx.x * GROUP_TILES;
    group_product<WEIGHT_FORMAT>(args.weight, tile, args.weight.row_tiles - tile, args.x, columns - first, shared,
                                 [&](u32 row, u32 column, float sum) {
                                     store_output(args, tile * 32 + row, first + column, columns, sum);
                                 });
}
