// attention: causal softmax attention of each token over its sequence's cached positions; see common/attention_tile.cuh
// for the formula, the arguments and the order of every sum.
//
// Compiled per padded head size: -DHEAD_DIM_PADDED=32, 64, 96 or 128 (head_dim a multiple of 8, at most that).
//   split: grid (tokens, kv heads * head groups, tile groups), 128 threads. A warp takes single tiles of one token and
//          leaves (o, m, l) of each; the last CTA of a (token, head group) to arrive joins them in ascending order: for
//          decode. Reads each cached position once per kv head, and 4 (head_dim + 2) bytes per tile and head twice; bound
//          by memory.
// The bits are those of attention_rows.cu.
#include "common/arrival.cuh"
#include "common/attention_join.cuh"
#include "common/quantize_warp.cuh"

#define D HEAD_DIM_PADDED
#define ATTENTION_WARPS 4

KERNEL(ATTENTION_SPLIT, AttentionArgs, 32 * ATTENTION_WARPS, 2) {
    __shared__ QueryFragments<D> queries[ATTENTION_WARPS];
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    RowShape shape = row_shape(args);
    shape.tokens = 1;
    const u32 kv_head = blockIdx.y / shape.head_groups;
    const u32 head_group = blockIdx.y % shape.head_groups;
    const u32 token = blockIdx.x;
    if (token >= *args.tokens) return;
    const u32 own = args.positions[token];
    const u32 sequence = args.sequences[token];
    const u32 begin = first_tile(args, own);
    u32 count = own / ATTENTION_TILE + 1 - begin;
    count = count < args.tiles ? count : args.tiles;
    // CTAs that have a tile.
    u32 active = (count + ATTENTION_WARPS - 1) / ATTENTION_WARPS;
    active = active < gridDim.z ? active : gridDim.z;
    if (blockIdx.z >= active) return;
    const LaneRows rows = lane_rows(shape, token, token + 1, kv_head, head_group, lane);
    float unscale[2];
    load_queries<D>(args, rows, lane, queries[warp], unscale);
    const i32 position[2] = {rows.live[0] ? (i32)own : -1, rows.live[1] ? (i32)own : -1};
#pragma unroll 1
    for (u32 u = blockIdx.z * ATTENTION_WARPS + warp; u < count; u += gridDim.z * ATTENTION_WARPS) {
        RowSoftmax softmax[2];
        RowOutputs<D> out;
        attend_tile<D, D <= 64 ? 8 : 4, D <= 64 ? 4 : 1>(args, queries[warp], unscale, position, sequence, kv_head, begin + u,
                                                         own, lane, softmax, out);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (!rows.live[r]) continue;
            const u64 index = ((u64)token * args.heads + rows.head[r]) * args.tiles + u;
            if (lane % 4 == 0) {
                args.partial_softmax[2 * index] = softmax[r].m;
                args.partial_softmax[2 * index + 1] = softmax[r].l;
            }
            float* partial = args.partial + index * args.head_dim;
#pragma unroll
            for (int n = 0; n < D / 8; ++n)
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const u32 dimension = (2 * (lane % 4) + c) * (D / 8) + n;
                    if (dimension < args.head_dim) partial[dimension] = out.at[n][2 * r + c];
                }
        }
    }
    if (!arrives_last(args.arrivals + (u64)token * gridDim.y + blockIdx.y, active)) return;
    const u32 first_head = kv_head * shape.group + head_group * 16;
    const u32 heads = shape.group - head_group * 16;
    const u64 first = ((u64)token * args.heads + first_head) * args.head_dim;
    join_heads<32 * ATTENTION_WARPS>(
        heads < 16 ? heads : 16, count, args.head_dim,
        [&](u32 row) {
            const u64 index = ((u64)token * args.heads + first_head + row) * args.tiles;
            return HeadTiles{args.partial_softmax + 2 * index, args.partial + index * args.head_dim, 2, args.head_dim};
        },
        [&](u32 row) { return args.sinks ? args.sinks + first_head + row : (const float*)0; },
        [&](u32 element, float value) {
            args.y[first + element] = value;
            // The heads are multiples of 32 wide then: a warp makes a record of neighbours.
            if (args.codes) quantize_warp(value, args.codes, args.sums, (first + element) / 32);
        });
}
