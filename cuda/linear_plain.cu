// linear with plain-float weights: y[t][o] = sum_i weight[o][i] x[t][i] + bias[o] (+ residual[t][o]).
//
// x: [rows, columns] f32, y: [rows, outputs] f32; weight: row tiles of 8 (common/weight.cuh).
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for each kernel.
// Grid: (row tiles, most rows / 1 or 8), 256 threads. f32 fused multiply-adds; reads the weight once per column group;
// bound by memory for one column, by FMA issue and L1 for many. Arithmetic: common/plain.cuh.
#include "common/plain.cuh"

struct LinearPlainArgs {
    Weight weight;
    const float* x;
    const float* bias;      // [outputs] or null
    const float* residual;  // as y, or null; may be y itself
    float* y;
    const u32* columns;  // live rows of the set
    u32 outputs;
    u32 reserved;
};

template <int NC>
__device__ __forceinline__ void linear_plain(const LinearPlainArgs& args) {
    __shared__ PlainShared<NC> shared;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 columns = *args.columns;
    const u32 first = blockIdx.y * NC;
    if (first >= columns) return;
    plain_product<WEIGHT_FORMAT, NC>(
        args.weight, blockIdx.x, args.x, shared,
        [&](u32 column) { return first + column < columns ? first + column : NO_ROW; },
        [&](u32 row, u32 column, float sum) {
            const u32 output = blockIdx.x * 8 + row;
            if (output >= args.outputs || first + column >= columns) return;
            if (args.bias) sum += args.bias[output];
            const u64 index = (u64)(first + column) * args.outputs + output;
            if (args.residual) sum += args.residual[index];
            args.y[index] = sum;
        });
}

KERNEL(LINEAR_PLAIN_1, LinearPlainArgs, PLAIN_THREADS) { linear_plain<1>(args); }
KERNEL(LINEAR_PLAIN_8, LinearPlainArgs, PLAIN_THREADS) { linear_plain<8>(args); }
