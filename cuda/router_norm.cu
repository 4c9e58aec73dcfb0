// rms_norm, the product with a router's plain matrix, and router, at once, for steps of few tokens.
//
// x: [tokens, width] f32, norm: [width] f32; weight: [experts, width] F32, row tiles of 8 (common/weight.cuh);
// logits: [tokens, experts] f32; ids: [tokens, top_k] u32, weights: [tokens, top_k] f32. The normalised row goes to
// `normed` and to activation records where those are not null.
// Grid: (experts, most tokens), 256 threads: a CTA makes one logit; the last to arrive chooses for all tokens, a warp per
// token. Reads the matrix once per token, from L2 after the first; bound by latency, so the matrix is loaded before the
// previous kernel ends. The bits are those of rms_norm, linear (common/plain.cuh) and router one after the other.
#include "common/arrival.cuh"
#include "common/async.cuh"
#include "common/norm.cuh"
#include "common/quantize.cuh"
#include "common/routing_choice.cuh"
#include "common/weight.cuh"

#define CTA_THREADS 256
#define MAX_QUADS 1024
#define MAX_EXPERTS 256
// As PLAIN_SLICES.
#define ROW_SLICES 32

struct RouterNormArgs {
    const float* x;
    const float* norm;
    float* normed;
    u8* codes;
    ActivationSums* sums;
    Weight weight;
    const float* bias;  // [experts] or null
    float* logits;
    u32* ids;
    float* weights;
    const u32* rows;
    u32* arrivals;  // zero, and zero again in the end
    u32 width;
    u32 experts;
    u32 top_k;
    float eps;
};

// Elements of one slice in ascending order, as a lane of the plain product adds them.
__device__ __forceinline__ float slice_sum(const Floats4* weight, const Floats4* row, u32 slice, u32 quads) {
    float sum = 0.0f;
    const u32 end = (slice + 1) * quads / ROW_SLICES;
#pragma unroll 4
    for (u32 quad = slice * quads / ROW_SLICES; quad < end; ++quad) {
        const Floats4 w = weight[quad];
        const Floats4 x = row[quad];
#pragma unroll
        for (int i = 0; i < 4; ++i) sum = fmaf(w.at[i], x.at[i], sum);
    }
    return sum;
}

KERNEL(router_norm_f32, RouterNormArgs, CTA_THREADS, 1) {
    __shared__ Floats4 weight[MAX_QUADS];
    __shared__ Floats4 row[MAX_QUADS];
    __shared__ float partials[NORM_THREADS / 32];
    __shared__ float slices[ROW_SLICES];
    __shared__ float logits[CTA_THREADS / 32][MAX_EXPERTS];
    const u32 quads = args.width / 4;
    const u32 expert = blockIdx.x;
    const Floats4* source = (const Floats4*)args.weight.base + (u64)(expert / 8) * quads * 8 + expert % 8;
    for (u32 quad = threadIdx.x; quad < quads; quad += CTA_THREADS) weight[quad] = source[quad * 8];
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 rows = *args.rows;
    const u32 token = blockIdx.y;
    if (token >= rows) return;
    const float* x = args.x + (u64)token * args.width;
    const float scale = rms_scale(x, args.width, args.eps, partials);
    for (u32 first = 0; first < quads; first += CTA_THREADS) {
        const u32 quad = first + threadIdx.x;
        // Quads past the end stay for the shuffles.
        const bool live = quad < quads;
        Floats4 four = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if (live) {
            const Floats4 own = ((const Floats4*)x)[quad];
            const Floats4 factor = ((const Floats4*)args.norm)[quad];
#pragma unroll
            for (int i = 0; i < 4; ++i) four.at[i] = own.at[i] * scale * factor.at[i];
            row[quad] = four;
        }
        if (expert != 0) continue;
        const u64 at = (u64)token * quads + (live ? quad : 0);
        if (live && args.normed) ((Floats4*)args.normed)[at] = four;
        if (args.codes) {
            quantize_block(four, quad % 8, live, (u32*)(args.codes + at / 8 * ACTIVATION_CODE_BYTES), args.sums + at / 8);
        }
    }
    __syncthreads();
    if (threadIdx.x < ROW_SLICES) slices[threadIdx.x] = slice_sum(weight, row, threadIdx.x, quads);
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.0f;
#pragma unroll
        for (int s = 0; s < ROW_SLICES; ++s) sum += slices[s];
        if (args.bias) sum += args.bias[expert];
        args.logits[(u64)token * args.experts + expert] = sum;
    }
    if (!arrives_last(args.arrivals, rows * args.experts)) return;
    const u32 warp = threadIdx.x / 32;
    for (u32 chosen = warp; chosen < rows; chosen += CTA_THREADS / 32) {
        const float* all = args.logits + (u64)chosen * args.experts;
        for (u32 id = threadIdx.x % 32; id < args.experts; id += 32) logits[warp][id] = load_fresh(all + id);
        __syncwarp();
        u32* ids = args.ids + (u64)chosen * args.top_k;
        float* weights = args.weights + (u64)chosen * args.top_k;
        const u32 lane = threadIdx.x % 32;
        const float sum =
            choose_experts(logits[warp], args.experts, args.top_k, lane, [&](u32 k, u32 id, float exponential) {
                if (k % 32 != lane) return;
                ids[k] = id;
                weights[k] = exponential;
            });
        for (u32 k = lane; k < args.top_k; k += 32) weights[k] = weights[k] / sum;
        __syncwarp();
    }
}
