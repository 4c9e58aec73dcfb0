// The choice of a token's experts, by one warp: the one arithmetic of every router kernel.
#pragma once
#include "common/sampling.cuh"

// The top_k largest of `experts` logits (at most 1024), descending, ties to the lowest index, and the softmax over them.
// Each of the top_k rounds is an arg-max over the experts not yet chosen, by an integer key that orders as the logits do
// (so that a NaN cannot confuse it); the softmax is summed in the order of choice.
__device__ __forceinline__ void choose_experts(const float* logits, u32 experts, u32 top_k, u32* ids, float* weights) {
    const u32 lane = threadIdx.x % 32;
    // Bit j: expert lane + 32 j is taken.
    u32 taken = 0;
    float largest = 0.0f;
    float sum = 0.0f;
    float own = 0.0f;  // weight of choice `lane`
    for (u32 k = 0; k < top_k; ++k) {
        u64 best = 0;
        for (u32 j = 0, id = lane; id < experts; ++j, id += 32) {
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
        const float exponential = expf(__fsub_rn(logit, largest));
        sum = __fadd_rn(sum, exponential);
        if (k % 32 == lane) ids[k] = id;
        if (k == lane) own = exponential;
        if (k >= 32 && k % 32 == lane) weights[k] = exponential;
    }
    if (lane < top_k) weights[lane] = own / sum;
    for (u32 k = lane + 32; k < top_k; k += 32) weights[k] = weights[k] / sum;
}
