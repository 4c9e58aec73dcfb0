// router: the top_k largest logits of each token, descending, ties to the lowest index, and the softmax over them.
//
// logits: [tokens, experts] f32; outputs: expert ids [tokens, top_k] u32, weights [tokens, top_k] f32.
// Grid: (most tokens); one warp per token, at most 1024 experts. Each of the top_k rounds is an arg-max over the experts
// not yet chosen, by an integer key that orders as the logits do (so that a NaN cannot confuse it); the softmax is summed
// in the order of choice. Moves 4 (experts + 2 top_k) bytes per token; bound by latency.
#include "common/sampling.cuh"

struct RouterArgs {
    const float* logits;
    u32* ids;
    float* weights;
    const u32* rows;
    u32 experts;
    u32 top_k;
};

KERNEL(router_f32, RouterArgs, 32) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 row = blockIdx.x;
    if (row >= *args.rows) return;
    const u32 lane = threadIdx.x;
    const float* logits = args.logits + (u64)row * args.experts;
    u32* ids = args.ids + (u64)row * args.top_k;
    float* weights = args.weights + (u64)row * args.top_k;
    // Bit j: expert lane + 32 j is taken.
    u32 taken = 0;
    float largest = 0.0f;
    float sum = 0.0f;
    for (u32 k = 0; k < args.top_k; ++k) {
        u64 best = 0;
        for (u32 j = 0, id = lane; id < args.experts; ++j, id += 32) {
            const u64 key = taken >> j & 1 ? 0 : ranked(ordered_key(logits[id]), id);
            best = key > best ? key : best;
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance >>= 1) {
            const u64 other = __shfl_xor_sync(0xffffffffu, best, distance);
            best = other > best ? other : best;
        }
        const u32 id = ~(u32)best;
        if (id % 32 == lane) taken |= 1u << id / 32;
        const float logit = logits[id];
        if (k == 0) largest = logit;
        const float exponential = expf(logit - largest);
        sum += exponential;
        if (lane == 0) {
            ids[k] = id;
            weights[k] = exponential;
        }
    }
    if (lane == 0) {
        for (u32 k = 0; k < args.top_k; ++k) weights[k] = weights[k] / sum;
    }
}
