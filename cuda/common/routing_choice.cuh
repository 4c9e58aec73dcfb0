// Choosing experts: the top_k largest logits, descending, ties to the lowest index, and the softmax over them.
#pragma once
#include "common/sampling.cuh"

// As `choose_experts`, of at most 32: every lane keeps its own expert's logit.
template <class Choose>
__device__ __forceinline__ float choose_of_few(const float* logits, u32 experts, u32 top_k, u32 lane, const Choose& choose) {
    const float own = lane < experts ? logits[lane] : 0.0f;
    const u32 key = ordered_key(own);
    bool free = lane < experts;
    float largest = 0.0f;
    float sum = 0.0f;
    for (u32 k = 0; k < top_k; ++k) {
        const u32 best = __reduce_max_sync(0xffffffffu, free ? key : 0);
        const u32 id = __ffs(__ballot_sync(0xffffffffu, free && key == best)) - 1;
        if (lane == id) free = false;
        const float logit = __shfl_sync(0xffffffffu, own, id);
        if (k == 0) largest = logit;
        // Nothing here may be contracted: every kernel that chooses gets the same bits.
        const float exponential = expf(__fsub_rn(logit, largest));
        sum = __fadd_rn(sum, exponential);
        choose(k, id, exponential);
    }
    return sum;
}

// One warp chooses for one token; at most 1024 experts. `choose(k, id, exponential)` is called by every lane for each
// choice in turn; returns the sum of the exponentials, in the order of choice. Each round is an arg-max over the experts
// not yet chosen, by an integer key that orders as the logits do (so that a NaN cannot confuse it).
template <class Choose>
__device__ __forceinline__ float choose_experts(const float* logits, u32 experts, u32 top_k, u32 lane, const Choose& choose) {
    if (experts <= 32) return choose_of_few(logits, experts, top_k, lane, choose);
    // Bit j: expert lane + 32 j is taken.
    u32 taken = 0;
    float largest = 0.0f;
    float sum = 0.0f;
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
        // Nothing here may be contracted: every kernel that chooses gets the same bits.
        const float exponential = expf(__fsub_rn(logit, largest));
        sum = __fadd_rn(sum, exponential);
        choose(k, id, exponential);
    }
    return sum;
}

// One warp chooses for one token: its top_k expert ids and their weights.
__device__ __forceinline__ void store_choice(const float* logits, u32 experts, u32 top_k, u32 lane, u32* ids, float* weights) {
    float mine = 0.0f;
    const float sum = choose_experts(logits, experts, top_k, lane, [&](u32 k, u32 id, float exponential) {
        if (k % 32 != lane) return;
        ids[k] = id;
        if (k < 32) mine = exponential;
        else weights[k] = exponential;
    });
    for (u32 k = lane; k < top_k; k += 32) weights[k] = (k < 32 ? mine : weights[k]) / sum;
}
