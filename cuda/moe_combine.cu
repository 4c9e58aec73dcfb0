// moe_combine[, add]: y[t][i] = sum_k weights[t][k] * x[t][k][i], k ascending [+ residual[t][i]].
//
// x: [tokens, top_k, width] f32, weights: [tokens, top_k] f32, residual, y: [tokens, width] f32; y may be the residual.
// Grid: (ceil(width / 1024), most tokens); one thread per four elements of the output, four experts on their way at once.
// Moves 4 (top_k + 1) bytes per element of the output, 4 more with a residual; bound by memory. The bits are those of
// moe_combine and add one after the other.
#include "common/types.cuh"

struct MoeCombineArgs {
    const float* x;
    const float* weights;
    const float* residual;  // or null
    float* y;
    const u32* rows;
    u32 width;
    u32 top_k;
};

#define EXPERTS_AHEAD 4

// Four elements of a row, of which `live` are there.
template <bool ALIGNED>
__device__ __forceinline__ Floats4 load_part(const float* part, u32 live) {
    Floats4 four;
    if constexpr (ALIGNED) {
        four = *(const Floats4*)part;
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) four.at[i] = i < live ? part[i] : 0.0f;
    }
    return four;
}

template <bool ALIGNED>
__device__ __forceinline__ void store_part(float* part, const Floats4& four, u32 live) {
    if constexpr (ALIGNED) {
        *(Floats4*)part = four;
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (i < live) part[i] = four.at[i];
        }
    }
}

template <bool ALIGNED>
__device__ __forceinline__ void combine(const MoeCombineArgs& args, u32 row, u32 first) {
    const u32 live = args.width - first;
    const u64 at = (u64)row * args.width + first;
    Floats4 residual = {{0.0f, 0.0f, 0.0f, 0.0f}};
    if (args.residual) residual = load_part<ALIGNED>(args.residual + at, live);
    const float* weights = args.weights + (u64)row * args.top_k;
    const float* x = args.x + (u64)row * args.top_k * args.width + first;
    Floats4 sum = {{0.0f, 0.0f, 0.0f, 0.0f}};
    for (u32 k = 0; k < args.top_k; k += EXPERTS_AHEAD) {
        Floats4 experts[EXPERTS_AHEAD];
        float factors[EXPERTS_AHEAD];
#pragma unroll
        for (u32 i = 0; i < EXPERTS_AHEAD; ++i) {
            if (k + i >= args.top_k) continue;
            experts[i] = load_part<ALIGNED>(x + (u64)(k + i) * args.width, live);
            factors[i] = weights[k + i];
        }
#pragma unroll
        for (u32 i = 0; i < EXPERTS_AHEAD; ++i) {
            if (k + i >= args.top_k) continue;
#pragma unroll
            for (int j = 0; j < 4; ++j) sum.at[j] = fmaf(factors[i], experts[i].at[j], sum.at[j]);
        }
    }
    if (args.residual) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum.at[j] = residual.at[j] + sum.at[j];
    }
    store_part<ALIGNED>(args.y + at, sum, live);
}

KERNEL(moe_combine_f32, MoeCombineArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 first = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    const u32 row = blockIdx.y;
    if (row >= *args.rows || first >= args.width) return;
    if (args.width % 4 == 0) combine<true>(args, row, first);
    else combine<false>(args, row, first);
}
