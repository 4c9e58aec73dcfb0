// linear with plain-float weights: y[t][o] = sum_i weight[o][i] x[t][i] + bias[o] (+ residual[t][o]).
//
// x: [rows, columns] f32, y: [rows, outputs] f32; weight: row tiles of 8 (common/weight.cuh).
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for each kernel.
// normed: y = W rms_norm(x) + bias for a step of one token. Grid: row tiles, 256 threads. The weights are on their way
// before the previous kernel has ended; bound by latency. Dynamic shared memory: the normalised row.
// Others: grid (row tiles / 1, 1 or 4, most rows / 1, 8 or 8), 256 threads. f32 fused multiply-adds; reads the weight once per
// column group; bound by memory for one column, by FMA issue and L1 for many, of which the wide one reads each for four tiles.
// Arithmetic: common/plain.cuh.
#include "common/norm.cuh"
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

template <int NC, int RT>
__device__ __forceinline__ void linear_plain(const LinearPlainArgs& args) {
    __shared__ PlainShared<NC> shared;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 columns = *args.columns;
    const u32 first = blockIdx.y * NC;
    if (first >= columns) return;
    const u32 tile = blockIdx.x * RT;
    plain_products<WEIGHT_FORMAT, NC, RT>(
        args.weight, tile, args.weight.row_tiles - tile, args.x, shared,
        [&](u32 column) { return min(first + column, columns - 1); },
        [&](u32 row, u32 column, float sum) {
            const u32 output = tile * 8 + row;
            if (output >= args.outputs || first + column >= columns) return;
            if (args.bias) sum += args.bias[output];
            const u64 index = (u64)(first + column) * args.outputs + output;
            if (args.residual) sum += args.residual[index];
            args.y[index] = sum;
        });
}

KERNEL(LINEAR_PLAIN_1, LinearPlainArgs, PLAIN_THREADS) { linear_plain<1, 1>(args); }
KERNEL(LINEAR_PLAIN_8, LinearPlainArgs, PLAIN_THREADS) { linear_plain<8, 1>(args); }
KERNEL(LINEAR_PLAIN_WIDE, LinearPlainArgs, PLAIN_THREADS) { linear_plain<8, 4>(args); }

struct LinearPlainNormedArgs {
    Weight weight;
    const float* x;
    const float* norm;  // [columns]
    const float* bias;  // [outputs] or null
    float* normed;      // where rms_norm(x) goes, or null
    float* y;
    const u32* columns;  // live rows of the set: 0 or 1
    u32 outputs;
    float eps;
};

// Chunks a lane has on their way at most.
#define CHUNKS_AHEAD 24

KERNEL(LINEAR_PLAIN_NORMED, LinearPlainNormedArgs, PLAIN_THREADS, 1) {
    DYNAMIC_SHARED(float, normed);
    __shared__ float partials[NORM_THREADS / 32];
    __shared__ PlainShared<1> shared;
    const Words4* codes;
    u32 begin, end;
    plain_slice(args.weight, blockIdx.x, codes, begin, end);
    Words4 raw[CHUNKS_AHEAD];
#pragma unroll
    for (u32 i = 0; i < CHUNKS_AHEAD; ++i) {
        if (begin + i < end) raw[i] = load_stream(codes + (u64)(begin + i) * 8);
    }
    wait_for_previous_kernel();
    allow_next_kernel();
    if (*args.columns == 0) return;
    const u32 width = args.weight.columns;
    const float scale = rms_scale(args.x, width, args.eps, partials);
    for (u32 i = threadIdx.x; i < width; i += PLAIN_THREADS) {
        const float value = args.x[i] * scale * args.norm[i];
        normed[i] = value;
        if (blockIdx.x == 0 && args.normed) args.normed[i] = value;
    }
    __syncthreads();
    float acc = 0.0f;
#pragma unroll
    for (u32 i = 0; i < CHUNKS_AHEAD; ++i) {
        if (begin + i < end) add_chunk<WEIGHT_FORMAT>(raw[i], normed, begin + i, width, acc);
    }
    for (u32 chunk = begin + CHUNKS_AHEAD; chunk < end; ++chunk) {
        add_chunk<WEIGHT_FORMAT>(load_stream(codes + (u64)chunk * 8), normed, chunk, width, acc);
    }
    const float sums[1] = {acc};
    join_slices<1>(shared, sums, [&](u32 row, u32, float sum) {
        const u32 output = blockIdx.x * 8 + row;
        if (output >= args.outputs) return;
        if (args.bias) sum += args.bias[output];
        args.y[output] = sum;
    });
}
