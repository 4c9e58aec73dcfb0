// The two shapes of a product kernel over the arithmetic of tile.cuh, shared by linear and moe_linear.
//
// split: a CTA takes one 32-row tile and 8 NT columns; each of its 8 warps takes one slice of the contraction and the
//        slices are added through shared memory. Many CTAs, deep loads: for few columns, bound by memory.
// sweep: a CTA takes 8 row tiles, one per warp, and 64 columns; every warp goes through all slices while the activations
//        stream through shared memory. Few bytes per operation: for prefill, bound by the tensor cores and the scaling.
//
// Both add the same numbers in the same order.
#pragma once
#include "common/tile.cuh"

#define PRODUCT_THREADS 256
#define SWEEP_COLUMNS 64

// Activations of a launch: `codes` rows of blocks x 64 bytes, `sums` rows of blocks records.
struct Activations {
    const u8* codes;
    const ActivationSums* sums;
};

// Column functor over global memory: each lane knows the activation rows of its columns, or NO_ROW.
#define NO_ROW 0xffffffffu

template <int NT>
struct ColumnRows {
    u32 own[NT];       // row of column 8n + g
    u32 sums[NT][2];   // rows of columns 8n + 2t, 8n + 2t + 1
};

template <int NT>
struct GlobalColumns {
    const Activations& x;
    const ColumnRows<NT>& rows;
    u32 blocks;
    u32 block;
    u32 t;
    int groups;

    __device__ __forceinline__ void operator()(int n, ActivationCodes& codes, ActivationSums& left,
                                               ActivationSums& right) const {
        codes = {0, 0, 0, 0};
        left = {0.0f, 0.0f, 0.0f, 0};
        right = {0.0f, 0.0f, 0.0f, 0};
        if (rows.own[n] != NO_ROW) {
            codes = *((const ActivationCodes*)(x.codes + ((u64)rows.own[n] * blocks + block) * ACTIVATION_CODE_BYTES) + t);
        }
        if (rows.sums[n][0] != NO_ROW) left = x.sums[(u64)rows.sums[n][0] * blocks + block];
        if (rows.sums[n][1] != NO_ROW) right = x.sums[(u64)rows.sums[n][1] * blocks + block];
    }
};

template <int NT>
struct GlobalActivations {
    const Activations& x;
    const ColumnRows<NT>& rows;
    u32 blocks;
    u32 t;
    int groups;

    __device__ __forceinline__ GlobalColumns<NT> operator()(u32 block) const {
        return {x, rows, blocks, block, t, groups};
    }
};

// Padded so that the eight rows and four column pairs of a store fall into different banks.
#define PARTIAL_STRIDE 36

// Partial sums of the split shape: [slice][column][row].
template <int NT>
struct SplitShared {
    float partial[SLICES][8 * NT][PARTIAL_STRIDE];
};

// The split shape. `columns` of its columns are live; `row_of(column)`: activation row of a column or NO_ROW.
// `store(row in tile, column, sum)`. All threads of the CTA must call it; it ends with a barrier.
template <int FORMAT, int NT, class RowOf, class Store>
__device__ __forceinline__ void split_product(const Weight& weight, u64 row_tile, const Activations& x,
                                              u32 columns, SplitShared<NT>& shared, const RowOf& row_of, const Store& store) {
    const u32 lane = threadIdx.x % 32;
    const u32 slice = threadIdx.x / 32;
    const u32 g = lane / 4;
    const u32 t = lane % 4;
    ColumnRows<NT> rows;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
        rows.own[n] = row_of(8 * n + g);
        rows.sums[n][0] = row_of(8 * n + 2 * t);
        rows.sums[n][1] = row_of(8 * n + 2 * t + 1);
    }
    Accumulators<NT> acc;
    acc.clear();
    const u32 units = weight.blocks / Codec<FORMAT>::BLOCKS;
    const GlobalActivations<NT> at = {x, rows, weight.blocks, t, (int)((columns + 7) / 8)};
    add_units<FORMAT, NT>(weight, row_tile, slice_begin(slice, units), slice_begin(slice + 1, units), lane, at, acc);
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                shared.partial[slice][8 * n + 2 * t + c % 2][g + 16 * m + 8 * (c / 2)] = acc.at[m][n][c];
            }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < NT; ++i) {
        const u32 column = threadIdx.x / 32 + 8 * i;
        float total = 0.0f;
#pragma unroll
        for (int s = 0; s < SLICES; ++s) total += shared.partial[s][column][lane];
        store(lane, column, total * Codec<FORMAT>::POST);
    }
    __syncthreads();
}

// Blocks copied per stage of the sweep, and stages in flight.
#define SWEEP_BLOCKS 2
#define SWEEP_STAGES 3

struct SweepStage {
    ActivationCodes codes[SWEEP_BLOCKS][SWEEP_COLUMNS][4];
    ActivationSums sums[SWEEP_BLOCKS][SWEEP_COLUMNS];
};

struct SweepShared {
    SweepStage stages[SWEEP_STAGES];
    u32 rows[SWEEP_COLUMNS];  // activation row of each column, or NO_ROW
};

// Column functor over a stage.
struct StagedColumns {
    const SweepStage& stage;
    u32 block;
    u32 g;
    u32 t;
    int groups;

    __device__ __forceinline__ void operator()(int n, ActivationCodes& codes, ActivationSums& left,
                                               ActivationSums& right) const {
        codes = stage.codes[block][8 * n + g][t];
        left = stage.sums[block][8 * n + 2 * t];
        right = stage.sums[block][8 * n + 2 * t + 1];
    }
};

// Copies one stage: SWEEP_BLOCKS blocks from `first` on.
__device__ __forceinline__ void copy_stage(const Activations& x, SweepShared& shared, u32 first, u32 blocks) {
    SweepStage& stage = shared.stages[first / SWEEP_BLOCKS % SWEEP_STAGES];
    for (u32 i = threadIdx.x; i < SWEEP_BLOCKS * SWEEP_COLUMNS * 5; i += PRODUCT_THREADS) {
        const u32 part = i % 5;
        const u32 column = i / 5 % SWEEP_COLUMNS;
        const u32 b = i / (5 * SWEEP_COLUMNS);
        const u32 row = shared.rows[column];
        const bool valid = row != NO_ROW && first + b < blocks;
        const u64 record = valid ? (u64)row * blocks + first + b : 0;
        if (part < 4) {
            copy_async(&stage.codes[b][column][part], x.codes + record * ACTIVATION_CODE_BYTES + part * 16, valid);
        } else {
            copy_async(&stage.sums[b][column], x.sums + record, valid);
        }
    }
    commit_copies();
}

// The sweep shape for one row tile per warp; a warp without one only copies. `live` of the columns hold something. `shared.rows` must be filled and visible.
// `store(row in tile, column, sum)` is called by every lane for each of its sums. Ends with a barrier.
template <int FORMAT, class Store>
__device__ __forceinline__ void sweep_product(const Weight& weight, u64 row_tile, bool has_tile, const Activations& x,
                                              u32 live, SweepShared& shared, const Store& store) {
    constexpr int NT = SWEEP_COLUMNS / 8;
    using C = Codec<FORMAT>;
    const u32 lane = threadIdx.x % 32;
    const u32 g = lane / 4;
    const u32 t = lane % 4;
    const u32 blocks = weight.blocks;
    const u32 units = blocks / C::BLOCKS;
    const u64 first_tile = row_tile * blocks;
    Accumulators<NT> acc, total;
    acc.clear();
    total.clear();
    u32 slice = 0;
    u32 slice_end = slice_begin(1, units);
    UnitScales<FORMAT> scales;
    const auto end_slices = [&](u32 unit) {
        // Empty slices add zero, as in the split shape.
        while (slice < SLICES && unit == slice_end) {
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int c = 0; c < 4; ++c) total.at[m][n][c] += acc.at[m][n][c];
            acc.clear();
            ++slice;
            slice_end = slice_begin(slice + 1, units);
        }
    };
    end_slices(0);
    for (u32 stage = 0; stage + 1 < SWEEP_STAGES; ++stage) copy_stage(x, shared, stage * SWEEP_BLOCKS, blocks);
#pragma unroll 1
    for (u32 first = 0; first < blocks; first += SWEEP_BLOCKS) {
        wait_copies<SWEEP_STAGES - 2>();
        __syncthreads();
        copy_stage(x, shared, first + (SWEEP_STAGES - 1) * SWEEP_BLOCKS, blocks);
        if (!has_tile) continue;
        const SweepStage& stage = shared.stages[first / SWEEP_BLOCKS % SWEEP_STAGES];
#pragma unroll
        for (u32 b = 0; b < SWEEP_BLOCKS; ++b) {
            const u32 block = first + b;
            if (block >= blocks) break;
            const TileCodes raw = load_codes<FORMAT>(weight, first_tile + block, lane);
            if (block % C::BLOCKS == 0) scales = load_scales<FORMAT>(weight, first_tile / C::BLOCKS + block / C::BLOCKS, g);
            const StagedColumns columns = {stage, b, g, t, (int)((live + 7) / 8)};
            add_tile<FORMAT, NT>(raw, scales, block % C::BLOCKS, columns, acc);
            if ((block + 1) % C::BLOCKS == 0) end_slices((block + 1) / C::BLOCKS);
        }
    }
    if (has_tile) {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    store(g + 16 * m + 8 * (c / 2), 8 * n + 2 * t + c % 2, total.at[m][n][c] * C::POST);
                }
    }
    wait_copies<0>();
    __syncthreads();
}
