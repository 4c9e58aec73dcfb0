// Joining the tiles of a token's query heads, in ascending order (common/attention_tile.cuh): the last part of attention that
// is split over tiles.
#pragma once
#include "common/attention_tile.cuh"

// Where the tiles of one query head are: in shared memory, or in device memory, written by CTAs that have arrived.
struct HeadTiles {
    const float* softmax;  // m and l, at softmax_stride * u
    const float* partial;  // outputs, at partial_stride * u
    u32 softmax_stride;
    u32 partial_stride;
};

// Threads side by side on one head's dimensions: a power of two, so that no thread divides.
#define ELEMENT_WIDTH (HEAD_DIM_PADDED == 96 ? 128 : HEAD_DIM_PADDED)

// Tiles whose results are asked for at once: they come from far away.
#define JOIN_TILES 16

// Joins `count` tiles for each of `rows` query heads. A thread has one dimension of a head, or none, and every
// THREADS / ELEMENT_WIDTH-th row. `tiles_of(row)`, `sink_of(row)` (null: none), `store(element of all rows, value)`: whole
// warps come to it where head_dim is a multiple of 32.
template <int THREADS, class TilesOf, class SinkOf, class Store>
__device__ __forceinline__ void join_heads(u32 rows, u32 count, u32 head_dim, const TilesOf& tiles_of, const SinkOf& sink_of,
                                           const Store& store) {
    const u32 dimension = threadIdx.x % ELEMENT_WIDTH;
    if (dimension >= head_dim) return;
#pragma unroll 1
    for (u32 row = threadIdx.x / ELEMENT_WIDTH; row < rows; row += THREADS / ELEMENT_WIDTH) {
        const HeadTiles tiles = tiles_of(row);
        const float* softmax = tiles.softmax;
        const float* partial = tiles.partial + dimension;
        RowSoftmax state = {-INFINITY_F32, 0.0f};
        float out = 0.0f;
#pragma unroll 1
        for (u32 first = 0; first < count; first += JOIN_TILES) {
            Words2 factors[JOIN_TILES];
            float outputs[JOIN_TILES];
#pragma unroll
            for (u32 i = 0; i < JOIN_TILES; ++i) {
                if (first + i >= count) break;
                factors[i] = load_anywhere((const Words2*)softmax);
                outputs[i] = load_anywhere(partial);
                softmax += tiles.softmax_stride;
                partial += tiles.partial_stride;
            }
#pragma unroll
            for (u32 i = 0; i < JOIN_TILES; ++i) {
                if (first + i >= count) break;
                const RowSoftmax tile = {__uint_as_float(factors[i].x), __uint_as_float(factors[i].y)};
                out = join_output(out, outputs[i], join(state, tile));
            }
        }
        store(row * head_dim + dimension, out * finish(state, sink_of(row)));
    }
}
