// Joins the tiles of rows in ascending order: the end of a split attention.
#pragma once
#include "common/arrival.cuh"
#include "common/attention_tile.cuh"
#include "common/quantize_warp.cuh"

// Tiles a token at `position` sees.
__device__ __forceinline__ u32 tile_count(const AttentionArgs& args, u32 position) {
    const u32 count = position / ATTENTION_TILE + 1 - first_tile(args, position);
    return count < args.tiles ? count : args.tiles;
}

// N elements of the result at once, each of `rows[i]` (token * heads + head) and `dimensions[i]`; stores those that are
// live. Whole warps are live or not, and 32 lanes hold neighbours, so that activation records can be made of them.
template <int N>
__device__ __forceinline__ void join_tiles(const AttentionArgs& args, const u64 (&rows)[N], const u32 (&dimensions)[N],
                                           const bool (&live)[N], u32 count) {
    RowSoftmax state[N];
    float out[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        state[i] = {-INFINITY_F32, 0.0f};
        out[i] = 0.0f;
    }
#pragma unroll 8
    for (u32 u = 0; u < count; ++u) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const u64 at = rows[i] * args.tiles + u;
            const float* softmax = (const float*)(args.partial_softmax + at);
            const RowSoftmax tile = {load_fresh(softmax), load_fresh(softmax + 1)};
            const float partial = load_fresh(args.partial + at * args.head_dim + dimensions[i]);
            out[i] = join_output(out[i], partial, join(state[i], tile));
        }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float factor = finish(state[i], args.sinks ? args.sinks + rows[i] % args.heads : 0);
        const u64 at = rows[i] * args.head_dim + dimensions[i];
        if (live[i] && args.y) args.y[at] = out[i] * factor;
        // A block's lanes are live together.
        if (live[i] && args.codes) quantize_warp(out[i] * factor, args.codes, args.sums, at / 32);
    }
}
