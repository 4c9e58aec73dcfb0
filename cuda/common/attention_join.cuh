// Joining the tiles of a token's query heads, in ascending order (common/attention_tile.cuh): the last part of attention that
// is split over tiles.
#pragma once
#include "common/attention_tile.cuh"

// Where the tiles of one query head are: (m, l) of each, and its outputs; `shared`: in shared memory, written before a
// barrier, else by CTAs that have arrived.
struct HeadTiles {
    const float* softmax;  // m at softmax_stride * u, l after it
    const float* partial;  // at partial_stride * u
    u32 softmax_stride;
    u32 partial_stride;
    bool shared;

    __device__ __forceinline__ float load(const float* address) const { return shared ? *address : load_fresh(address); }
};

// Joins `count` tiles for each of `rows` query heads; the CTA's THREADS threads share them out, `width` to a row.
// `tiles_of(row)`, `sink_of(row)` (null: none), `store(row, dimension, value)`.
template <int D, int THREADS, class TilesOf, class SinkOf, class Store>
__device__ __forceinline__ void join_heads(u32 rows, u32 count, u32 head_dim, const TilesOf& tiles_of, const SinkOf& sink_of,
                                           const Store& store) {
    u32 width = THREADS;
    while (width > 8 && THREADS / width < rows) width /= 2;
    const u32 row = threadIdx.x / width;
    const u32 first = threadIdx.x % width;
    if (row >= rows) return;
    const HeadTiles tiles = tiles_of(row);
    RowSoftmax state = {-INFINITY_F32, 0.0f};
    float out[D / 8];
#pragma unroll
    for (int i = 0; i < D / 8; ++i) out[i] = 0.0f;
#pragma unroll 2
    for (u32 u = 0; u < count; ++u) {
        const float* softmax = tiles.softmax + (u64)u * tiles.softmax_stride;
        const float* partial = tiles.partial + (u64)u * tiles.partial_stride;
        const RowSoftmax tile = {tiles.load(softmax), tiles.load(softmax + 1)};
        const JoinFactors factors = join(state, tile);
#pragma unroll
        for (u32 i = 0; i < D / 8; ++i) {
            const u32 dimension = first + i * width;
            if (dimension >= head_dim) break;
            out[i] = join_output(out[i], tiles.load(partial + dimension), factors);
        }
    }
    const float factor = finish(state, sink_of(row));
#pragma unroll
    for (u32 i = 0; i < D / 8; ++i) {
        const u32 dimension = first + i * width;
        if (dimension >= head_dim) break;
        store(row, dimension, out[i] * factor);
    }
}
