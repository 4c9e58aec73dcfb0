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

struct ScannedPairs {
    u32 pairs[MAX_SCANNED_PAIRS];
    u32 count;
};

// Collects the pairs of `expert` in order, `limit` at most. All threads call it; ends with a barrier.
__device__ __forceinline__ void scan_pairs(const Routing& routing, u32 expert, ScannedPairs& found) {
    if (threadIdx.x < 32) {
        u32 total = *routing.tokens * routing.top_k;
        total = total < MAX_SCANNED_PAIRS ? total : MAX_SCANNED_PAIRS;
        u32 count = 0;
        for (u32 first = 0; first < total; first += 32) {
            const u32 pair = first + threadIdx.x;
            const bool mine = pair < total && routing.experts[pair] == expert;
            const u32 mask = __ballot_sync(0xffffffffu, mine);
            if (mine) found.pairs[count + __popc(mask & ((1u << threadIdx.x) - 1))] = pair;
            count += __popc(mask);
        }
        if (threadIdx.x == 0) found.count = count;
    }
    __syncthreads();
}
