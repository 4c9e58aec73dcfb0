// moe_linear, first step for many tokens: pairs sorted by expert, so that an expert's weights are read once.
//
// experts: [tokens, top_k] u32 -> offsets: [expert_count + 1], order: [tokens * top_k] pairs (token * top_k + choice),
// ascending inside an expert. One CTA of 1024 threads, a warp per expert in turn, ids read twice per expert from L1;
// bound by latency. No atomics: the order is the same every time.
#include "common/types.cuh"

#define MAX_EXPERTS 1024

struct MoeLinearRouteArgs {
    const u32* experts;
    const u32* tokens;
    u32* offsets;
    u32* order;
    u32 top_k;
    u32 expert_count;  // <= MAX_EXPERTS
};

KERNEL(moe_linear_route, MoeLinearRouteArgs, 1024) {
    __shared__ u32 starts[MAX_EXPERTS + 1];
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 pairs = *args.tokens * args.top_k;
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    for (u32 expert = warp; expert < args.expert_count; expert += 32) {
        u32 count = 0;
        for (u32 pair = lane; pair < pairs; pair += 32) count += args.experts[pair] == expert;
#pragma unroll
        for (int distance = 16; distance > 0; distance >>= 1) count += __shfl_xor_sync(0xffffffffu, count, distance);
        if (lane == 0) starts[expert + 1] = count;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        starts[0] = 0;
        for (u32 expert = 0; expert < args.expert_count; ++expert) starts[expert + 1] += starts[expert];
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i <= args.expert_count; i += blockDim.x) args.offsets[i] = starts[i];
    for (u32 expert = warp; expert < args.expert_count; expert += 32) {
        u32 next = starts[expert];
        for (u32 first = 0; first < pairs; first += 32) {
            const bool mine = first + lane < pairs && args.experts[first + lane] == expert;
            const u32 mask = __ballot_sync(0xffffffffu, mine);
            if (mine) args.order[next + __popc(mask & ((1u << lane) - 1))] = first + lane;
            next += __popc(mask);
        }
    }
}
