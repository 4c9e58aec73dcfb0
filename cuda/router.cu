// router: the top_k largest logits of each token, descending, ties to the lowest index, and the softmax over them.
//
// logits: [tokens, experts] f32; outputs: expert ids [tokens, top_k] u32, weights [tokens, top_k] f32.
// Grid: (most tokens); one warp per token, at most 1024 experts (common/top_experts.cuh). Moves 4 (experts + 2 top_k)
// bytes per token; bound by latency.
#include "common/top_experts.cuh"

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
    choose_experts(args.logits + (u64)row * args.experts, args.experts, args.top_k, args.ids + (u64)row * args.top_k,
                   args.weights + (u64)row * args.top_k);
}
