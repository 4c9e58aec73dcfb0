// attention, last step of the split kernels: joins the tiles of each (token, head) in ascending order.
//
// partial: [tokens, heads, tiles, head_dim], partial_softmax: [tokens, heads, tiles] of (m, l); y: [tokens, heads *
// head_dim]. Grid: (tokens, heads), 128 threads, one per dimension. Moves 4 (head_dim + 2) bytes per tile; bound by
// latency. Arithmetic: `join` in common/attention_tile.cuh, as in the rows kernel. Where a product reads y, its activation
// records are written here (head_dim a multiple of 32: a warp holds one block), and y only where something else reads it.
#include "common/attention_tile.cuh"
#include "common/quantize_warp.cuh"

KERNEL(attention_merge_f32, AttentionArgs, 128) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 token = blockIdx.x;
    const u32 head = blockIdx.y;
    if (token >= *args.tokens) return;
    const u32 own = args.positions[token];
    u32 count = own / ATTENTION_TILE + 1 - first_tile(args, own);
    count = count < args.tiles ? count : args.tiles;
    const u64 row = (u64)token * args.heads + head;
    const u32 dimension = threadIdx.x < args.head_dim ? threadIdx.x : 0;
    const float2* softmax = args.partial_softmax + row * args.tiles;
    const float* partial = args.partial + row * args.tiles * args.head_dim + dimension;
    RowSoftmax state = {-INFINITY_F32, 0.0f};
    float out = 0.0f;
#pragma unroll 8
    for (u32 u = 0; u < count; ++u) {
        const float2 tile = softmax[u];
        const JoinFactors factors = join(state, {tile.x, tile.y});
        out = join_output(out, partial[(u64)u * args.head_dim], factors);
    }
    const float factor = finish(state, args.sinks ? args.sinks + head : 0);
    if (threadIdx.x >= args.head_dim) return;
    const u64 at = row * args.head_dim + dimension;
    if (args.y) args.y[at] = out * factor;
    if (args.codes) quantize_warp(out * factor, args.codes, args.sums, at / 32);
}
