// rms_norm, the product with a router's plain matrix, and router, at once, for steps of few tokens.
//
// x: [tokens, width] f32, norm: [width] f32; weight: [experts, width] F32, row tiles of 8 (common/weight.cuh);
// logits: [tokens, experts] f32; ids: [tokens, top_k] u32, weights: [tokens, top_k] f32. The normalised row goes to
// `normed` and to activation records where those are not null.
// Grid: (experts, most tokens), 256 threads: a CTA makes one logit; the last to arrive chooses for all tokens, a warp per
// token. Reads the matrix once per token, from L2 after the first; bound by latency, so all but x is loaded before the
// previous kernel ends, and the records' warps are spread over the CTAs. The bits are those of rms_norm, linear
// (common/plain.cuh) and router one after the other.
#include "common/arrival.cuh"
#include "common/async.cuh"
#include "common/norm.cuh"
#include "common/router.cuh"
#include "common/routing_choice.cuh"

#define CTA_THREADS 256
#define MAX_QUADS 1024
// Quads of a thread.
#define OWN_QUADS (MAX_QUADS / CTA_THREADS)
#define MAX_EXPERTS 256
// As PLAIN_SLICES.
#define ROW_SLICES 32

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
    const RouterProductArgs& product = args.product;
    const u32 quads = product.weight.blocks;
    const u32 expert = blockIdx.x;
    const Floats4* source = (const Floats4*)product.weight.base + (u64)(expert / 8) * quads * 8 + expert % 8;
    const u32 rows = *product.rows;
    const float bias = product.bias ? product.bias[expert] : 0.0f;
    Floats4 factor[OWN_QUADS];
#pragma unroll
    for (u32 i = 0; i < OWN_QUADS; ++i) {
        const u32 quad = i * CTA_THREADS + threadIdx.x;
        if (quad >= quads) break;
        weight[quad] = source[quad * 8];
        factor[i] = ((const Floats4*)args.norm)[quad];
    }
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 token = blockIdx.y;
    if (token >= rows) return;
    const Floats4* x = (const Floats4*)(product.x + (u64)token * product.weight.columns);
    Floats4 own[OWN_QUADS];
    float squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < OWN_QUADS; ++i) {
        const u32 quad = i * CTA_THREADS + threadIdx.x;
        own[i] = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if (quad < quads) own[i] = x[quad];
    }
    // In the order of `squares_of`.
#pragma unroll
    for (u32 i = 0; i < OWN_QUADS; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) squares = fmaf(own[i].at[j], own[i].at[j], squares);
    const float scale = scale_of_squares(squares, product.weight.columns, args.eps, partials);
#pragma unroll
    for (u32 i = 0; i < OWN_QUADS; ++i) {
        const u32 quad = i * CTA_THREADS + threadIdx.x;
        if (quad >= quads) break;
#pragma unroll
        for (int j = 0; j < 4; ++j) own[i].at[j] = own[i].at[j] * scale * factor[i].at[j];
        row[quad] = own[i];
    }
    __syncthreads();
    const u32 warp = threadIdx.x / 32;
    if (warp == 0) {
        slices[threadIdx.x] = slice_sum(weight, row, threadIdx.x, quads);
    } else {
        put_out(args, row, token, quads, (warp - 1) * product.experts + expert, (CTA_THREADS / 32 - 1) * product.experts);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.0f;
#pragma unroll
        for (int s = 0; s < ROW_SLICES; ++s) sum += slices[s];
        if (product.bias) sum += bias;
        product.logits[(u64)token * product.experts + expert] = sum;
    }
    if (!arrives_last(product.arrivals, rows * product.experts)) return;
    for (u32 chosen = warp; chosen < rows; chosen += CTA_THREADS / 32) {
        const float* all = product.logits + (u64)chosen * product.experts;
        for (u32 id = threadIdx.x % 32; id < product.experts; id += 32) logits[warp][id] = load_fresh(all + id);
        __syncwarp();
        const u64 at = (u64)chosen * product.top_k;
        store_choice(logits[warp], product.experts, product.top_k, threadIdx.x % 32, product.ids + at, product.weights + at);
        __syncwarp();
    }
}
