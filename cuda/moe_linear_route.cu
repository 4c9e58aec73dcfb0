// moe_linear, first step for many tokens: pairs sorted by expert, so that an expert's weights are read once.
//
// experts: [tokens, top_k] u32 -> offsets: [expert_count + 1], order: [tokens * top_k] pairs (token * top_k + choice),
// ascending inside an expert. Grid: (experts), 256 threads: a CTA counts the pairs of its expert and of those before it,
// each thread in a stretch of its own, and places its own. Ids are read twice per expert, from L2 and L1; bound by latency.
// No atomics: the order is the same every time.
#include "common/async.cuh"

#define ROUTE_THREADS 256

struct MoeLinearRouteArgs {
    const u32* experts;
    const u32* tokens;
    u32* offsets;
    u32* order;
    u32 top_k;
    u32 expert_count;
};

// The ids of four pairs from `pair` on, which is a multiple of four; no expert's behind `end`.
struct FourIds {
    u32 at[4];

    __device__ __forceinline__ FourIds(const u32* experts, u32 pair, u32 end) {
        if (pair + 4 <= end) {
            const Words4 ids = *(const Words4*)(experts + pair);
            at[0] = ids.x, at[1] = ids.y, at[2] = ids.z, at[3] = ids.w;
            return;
        }
#pragma unroll
        for (u32 i = 0; i < 4; ++i) at[i] = pair + i < end ? experts[pair + i] : 0xffffffffu;
    }
};

KERNEL(moe_linear_route, MoeLinearRouteArgs, ROUTE_THREADS) {
    __shared__ u32 warp_before[ROUTE_THREADS / 32];
    __shared__ u32 warp_own[ROUTE_THREADS / 32];
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 pairs = *args.tokens * args.top_k;
    const u32 expert = blockIdx.x;
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    // Whole quads, each of which is one load.
    const u32 stretch = (pairs + 4 * ROUTE_THREADS - 1) / (4 * ROUTE_THREADS) * 4;
    const u32 first = threadIdx.x * stretch < pairs ? threadIdx.x * stretch : pairs;
    const u32 end = first + stretch < pairs ? first + stretch : pairs;
    u32 before = 0;
    u32 own = 0;
#pragma unroll 4
    for (u32 pair = first; pair < end; pair += 4) {
        const FourIds ids(args.experts, pair, end);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            before += ids.at[i] < expert;
            own += ids.at[i] == expert;
        }
    }
    // Own pairs of the lanes up to this one; pairs before of the whole warp.
    u32 upto = own;
#pragma unroll
    for (u32 distance = 1; distance < 32; distance <<= 1) {
        const u32 other = __shfl_up_sync(0xffffffffu, upto, distance);
        upto += lane >= distance ? other : 0;
        before += __shfl_xor_sync(0xffffffffu, before, distance);
    }
    if (lane == 31) {
        warp_before[warp] = before;
        warp_own[warp] = upto;
    }
    __syncthreads();
    u32 start = 0;
    u32 count = 0;
    u32 next = upto - own;
#pragma unroll
    for (u32 w = 0; w < ROUTE_THREADS / 32; ++w) {
        start += warp_before[w];
        next += w < warp ? warp_own[w] : 0;
        count += warp_own[w];
    }
    next += start;
    if (threadIdx.x == 0) {
        args.offsets[expert] = start;
        if (expert + 1 == args.expert_count) args.offsets[expert + 1] = start + count;
    }
    if (own == 0) return;
#pragma unroll 4
    for (u32 pair = first; pair < end; pair += 4) {
        const FourIds ids(args.experts, pair, end);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (ids.at[i] == expert) args.order[next++] = pair + i;
        }
    }
}
