// Which (token, choice) pairs an expert serves. A pair is token * top_k + choice; pairs keep their order.
#pragma once
#include "common/types.cuh"

// Most pairs a CTA looks through by itself.
#define MAX_SCANNED_PAIRS 512

// What the kernels of moe_linear know of the routing.
struct Routing {
    const u32* experts;  // [tokens, top_k]
    const u32* tokens;   // live tokens
    const u32* offsets;  // [expert_count + 1] into `order`; null where a CTA scans for itself
    const u32* order;    // pairs by expert
    u32 top_k;
    u32 expert_count;
    u32 shared_x;  // 1: x has one row per token; 0: one per pair
    u32 reserved;
};

// Row of x a pair reads.
__device__ __forceinline__ u32 activation_row(const Routing& routing, u32 pair) {
    return routing.shared_x ? pair / routing.top_k : pair;
}

// Threads of a CTA that looks.
#define SCAN_THREADS 256

struct ScannedPairs {
    u32 pairs[MAX_SCANNED_PAIRS];
    u32 warps[SCAN_THREADS / 32];
    u32 count;
};

// Collects the pairs of `expert` in order, of those that `tokens` tokens have. All threads of the CTA call it; ends with a
// barrier.
__device__ __forceinline__ void scan_pairs(const Routing& routing, u32 tokens, u32 expert, ScannedPairs& found) {
    u32 total = tokens * routing.top_k;
    total = total < MAX_SCANNED_PAIRS ? total : MAX_SCANNED_PAIRS;
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    u32 before = 0;
    for (u32 first = 0; first < total; first += SCAN_THREADS) {
        const u32 pair = first + threadIdx.x;
        const bool mine = pair < total && routing.experts[pair] == expert;
        const u32 mask = __ballot_sync(0xffffffffu, mine);
        if (lane == 0) found.warps[warp] = __popc(mask);
        __syncthreads();
        u32 at = before;
#pragma unroll
        for (u32 other = 0; other < SCAN_THREADS / 32; ++other) {
            const u32 count = found.warps[other];
            if (other < warp) at += count;
            before += count;
        }
        if (mine) found.pairs[at + __popc(mask & ((1u << lane) - 1))] = pair;
        __syncthreads();
    }
    if (threadIdx.x == 0) found.count = before;
    __syncthreads();
}

// Whether so many tokens choose so much that nearly every expert is wanted: then weights need not wait for the choice.
__device__ __forceinline__ bool wants_nearly_all(const Routing& routing, u32 tokens) {
    return tokens * routing.top_k >= 2 * routing.expert_count;
}
