// Products for a step of one token: the weights are all there is to read, so everything else hides behind them.
//
// A CTA is GROUPS groups of eight warps; a group multiplies one row tile at a time, each warp one slice of the
// contraction, with the arithmetic of tile.cuh. CTAs stay and take tile after tile, weights of the next on their way while
// this one is summed; the first are requested before the previous kernel has ended. Every CTA makes the activation records
// for itself, in shared memory, normalising the row first where asked.
#pragma once
#include "common/norm.cuh"
#include "common/quantize.cuh"
#include "common/tile.cuh"

#define GROUP_THREADS 256

// Activation records of `rows` rows in dynamic shared memory: codes of all blocks, then sums.
struct SingleActivations {
    ActivationCodes* codes;
    ActivationSums* sums;

    __device__ __forceinline__ SingleActivations(u32 rows, u32 blocks) {
        DYNAMIC_SHARED(Words4, dynamic_shared);
        codes = dynamic_shared;
        sums = (ActivationSums*)(dynamic_shared + 4 * rows * blocks);
    }
};

// Fills the records from `rows` rows of x, [rows, width] f32. With `norm`, of one row: x * scale * norm[i], which also goes
// to `normed` where that is wanted. Ends with a barrier.
template <int THREADS>
__device__ __forceinline__ void fill_activations(const SingleActivations& out, const float* x, u32 rows, u32 width,
                                                 const float* norm, float eps, float* normed) {
    __shared__ float partials[NORM_THREADS / 32];
    float scale = 1.0f;
    if (norm) scale = rms_scale(x, width, eps, partials);
    const u32 quads = rows * width / 4;
    for (u32 first = 0; first < quads; first += THREADS) {
        const u32 index = first + threadIdx.x;
        const bool live = index < quads;
        Floats4 four = {{0.0f, 0.0f, 0.0f, 0.0f}};
        if (live) four = ((const Floats4*)x)[index];
        if (norm && live) {
            const Floats4 factor = ((const Floats4*)norm)[index];
#pragma unroll
            for (int i = 0; i < 4; ++i) four.at[i] = four.at[i] * scale * factor.at[i];
            if (normed) ((Floats4*)normed)[index] = four;
        }
        quantize_block(four, threadIdx.x % 8, live, (u32*)(out.codes + index / 8 * 4), out.sums + index / 8);
    }
    __syncthreads();
}

// Which row tile of which weight a group takes, and the activation row it is multiplied with.
struct GroupTile {
    const Weight* weight;
    u64 row_tile;
    u32 row;
};

// Multiplies `count` tiles per group. `tile_of(i)` is this group's i-th (for the calling thread); `prepare()` is called when
// the first weights are on their way and must leave the records in place, ending with a barrier; it returns false when
// there is nothing to do. `finish(i, row in tile, sums of the groups)` is called by the 32 lanes of the first warp.
template <int FORMAT, int GROUPS, class TileOf, class Prepare, class Finish>
__device__ __forceinline__ void single_product(const SingleActivations& x, u32 blocks, u32 count, const TileOf& tile_of,
                                               const Prepare& prepare, const Finish& finish) {
    using C = Codec<FORMAT>;
    __shared__ float partial[2][GROUPS * SLICES][32];
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    const u32 slice = warp % SLICES;
    const u32 units = blocks / C::BLOCKS;
    const u32 begin = slice_begin(slice, units);
    const u32 share = (slice_begin(slice + 1, units) - begin) * C::BLOCKS;
    const auto place = [&](u32 i) {
        const GroupTile tile = tile_of(i);
        return LanePlanes<FORMAT>(*tile.weight, tile.row_tile, begin, lane);
    };
    LanePlanes<FORMAT> at = place(0);
    Window<FORMAT> window;
    window.open(at, share);
    if (!prepare()) return;
#pragma unroll 1
    for (u32 i = 0; i < count; ++i) {
        const bool more = i + 1 < count;
        const u32 first = tile_of(i).row * blocks + begin * C::BLOCKS;
        const ActivationCodes* codes = x.codes + 4 * first + lane % 4;
        const ActivationSums* sums = x.sums + first;
        Accumulators<0> acc;
        acc.clear();
        add_slice<FORMAT, 0>(
            window, at, [&] { return place(i + 1); }, more, share,
            [&](u32 block, BlockColumns<0>& out) {
                out.codes[0] = codes[4 * block];
                out.sums[0][0] = sums[block];
                out.sums[0][1] = out.sums[0][0];
            },
            1, acc);
        // Every lane of a quad holds the same sums.
        if (lane % 4 == 0) {
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int c = 0; c < 4; c += 2) partial[i % 2][warp][lane / 4 + 16 * m + 4 * c] = acc.at[m][0][c];
        }
        // The other half of `partial` is free: its readers passed the barrier before this one.
        __syncthreads();
        if (warp == 0) {
            float totals[GROUPS];
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                float total = 0.0f;
#pragma unroll
                for (int s = 0; s < SLICES; ++s) total += partial[i % 2][group * SLICES + s][lane];
                totals[group] = total * C::POST;
            }
            finish(i, lane, totals);
        }
    }
}
