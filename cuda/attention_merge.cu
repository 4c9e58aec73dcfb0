// attention, last step of the split kernels: joins the tiles of each (token, head) in ascending order.
//
// partial: [tokens, heads, tiles, head_dim], partial_softmax: [tokens, heads, tiles] of (m, l); y: [tokens, heads *
// head_dim]. Grid: (tokens, heads), 128 threads, one per dimension. Moves 4 (head_dim + 2) bytes per tile; bound by
// latency. Arithmetic: `join` in common/attention_tile.cuh, as in the rows kernel. Where a product reads y, its activation
// records are written here (head_dim a multiple of 32: a warp holds one block), and y only where something else reads it.
#include "common/attention_join.cuh"

KERNEL(attention_merge_f32, AttentionArgs, 128) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 token = blockIdx.x;
    if (token >= *args.tokens) return;
    const bool live[1] = {threadIdx.x < args.head_dim};
    const u64 rows[1] = {(u64)token * args.heads + blockIdx.y};
    const u32 dimensions[1] = {live[0] ? threadIdx.x : 0};
    join_tiles<1>(args, rows, dimensions, live, tile_count(args, args.positions[token]));
}
