// router: the top_k largest logits of each token, descending, ties to the lowest index, and the softmax over them.
//
// logits: [tokens, experts] f32; outputs: expert ids [tokens, top_k] u32, weights [tokens, top_k] f32.
// Grid: (most tokens); one warp per token, at most 1024 experts. Each of the top_k rounds is an arg-max over the
// experts not yet chosen; the softmax is summed in the order of choice. Moves 4 (experts + 2 top_k) bytes per token;
// bound by latency.
#include "common/types.cuh"

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
        float best = -INFINITY_F32;
        u32 best_id = 0xffffffffu;
        for (u32 j = 0, id = lane; id < args.experts; ++j, id += 32) {
            const float logit = logits[id];
            // An id is always found, even if every logit is -inf or NaN: the first one free is taken then.
            if (!(taken >> j & 1) && (best_id == 0xffffffffu || logit > best)) {
                best = logit;
                best_id = id;
            }
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance >>= 1) {
            const float other = __shfl_xor_sync(0xffffffffu, best, distance);
            const u32 other_id = __shfl_xor_sync(0xffffffffu, best_id, distance);
            if (other_id != 0xffffffffu &&
                (best_id == 0xffffffffu || other > best || (!(best > other) && other_id < best_id))) {
                best = other;
                best_id = other_id;
            }
        }
        // With NaN among the logits the lanes may disagree; lane 0 decides, so that no expert is taken twice.
        best = __shfl_sync(0xffffffffu, best, 0);
        best_id = __shfl_sync(0xffffffffu, best_id, 0);
        if (best_id % 32 == lane) taken |= 1u << best_id / 32;
        if (k == 0) largest = best;
        const float exponential = expf(best - largest);
        sum += exponential;
        if (lane == 0) {
            ids[k] = best_id;
            weights[k] = exponential;
        }
    }
    if (lane == 0) {
        for (u32 k = 0; k < args.top_k; ++k) weights[k] = weights[k] / sum;
    }
}
