// router: the top_k largest logits of each token, descending, ties to the lowest index, and the softmax over them.
//
// logits: [tokens, experts] f32; outputs: expert ids [tokens, top_k] u32, weights [tokens, top_k] f32.
// Grid: (most tokens); one warp per token, at most 1024 experts. Moves 4 (experts + 2 top_k) bytes per token; bound by latency.
#include "common/routing_choice.cuh"

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
    const float sum = choose_experts(logits, args.experts, args.top_k, lane, [&](u32 k, u32 id, float exponential) {
        if (lane != 0) return;
        ids[k] = id;
        weights[k] = exponential;
    });
    if (lane == 0) {
        for (u32 k = 0; k < args.top_k; ++k) weights[k] = weights[k] / sum;
    }
}
