// linear: y[t][o] = sum_i weight[o][i] x[t][i] + bias[o] (+ residual[t][o]), weight in any quantised format.
//
// x: activations made by linear_quantize; weight: tiles (common/weight.cuh); y: [rows of the set, outputs] f32.
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for each kernel.
//   split, NT 1, 2, 4: grid (row tiles, ceil(most columns / 8 NT)), 256 threads. Reads the weight once; bound by memory.
//   sweep:             grid (ceil(row tiles / 8), ceil(most columns / 64)), 256 threads. Bound by the tensor cores.
// Both shapes give the same bits for a column whatever the others hold (common/tile.cuh).
#include "common/product.cuh"

struct LinearArgs {
    Weight weight;
    Activations x;
    const float* bias;      // [outputs] or null
    const float* residual;  // as y, or null; may be y itself
    float* y;
    const u32* columns;  // live rows of the set
    u32 outputs;
    u32 reserved;
};

__device__ __forceinline__ void store_output(const LinearArgs& args, u32 output, u32 column, u32 columns, float sum) {
    if (output >= args.outputs || column >= columns) return;
    if (args.bias) sum += args.bias[output];
    const u64 index = (u64)column * args.outputs + output;
    if (args.residual) sum += args.residual[index];
    args.y[index] = sum;
}

template <int NT>
__device__ __forceinline__ void linear_split(const LinearArgs& args) {
    __shared__ SplitShared<NT> shared;
    Window<WEIGHT_FORMAT> window;
    open_slice(window, args.weight, blockIdx.x);
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 columns = *args.columns;
    const u32 first = blockIdx.y * 8 * NT;
    if (first >= columns) return;
    split_product<WEIGHT_FORMAT, NT>(
        window, args.weight, blockIdx.x, args.x, columns - first, shared, [&](u32 column) { return first + column; },
        [&](u32 row, u32 column, float sum) {
            store_output(args, blockIdx.x * 32 + row, first + column, columns, sum);
        });
}

KERNEL(LINEAR_SPLIT_8, LinearArgs, PRODUCT_THREADS, 2) { linear_split<1>(args); }
KERNEL(LINEAR_SPLIT_16, LinearArgs, PRODUCT_THREADS, 1) { linear_split<2>(args); }
KERNEL(LINEAR_SPLIT_32, LinearArgs, PRODUCT_THREADS, 1) { linear_split<4>(args); }

KERNEL(LINEAR_SWEEP, LinearArgs, PRODUCT_THREADS, 1) {
    __shared__ SweepShared shared;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 columns = *args.columns;
    const u32 first = blockIdx.y * SWEEP_COLUMNS;
    if (first >= columns) return;
    if (threadIdx.x < SWEEP_COLUMNS) {
        shared.rows[threadIdx.x] = first + threadIdx.x < columns ? first + threadIdx.x : NO_ROW;
    }
    __syncthreads();
    const u32 row_tile = blockIdx.x * 8 + threadIdx.x / 32;
    sweep_product<WEIGHT_FORMAT>(args.weight, row_tile, row_tile < args.weight.row_tiles, args.x, columns - first,
                          shared,
                          [&](u32 row, u32 column, float sum) {
                              store_output(args, row_tile * 32 + row, first + column, columns, sum);
                          });
}
