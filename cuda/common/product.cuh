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

#define NO_ROW 0xffffffffu

// Activations of a launch: `codes` rows of blocks x 64 bytes, `sums` rows of blocks records.
struct Activations {
    const u8* codes;
    const ActivationSums* sums;
};

// Activation rows of a lane's columns. Columns that hold nothing read some row that exists: what they yield is dropped.
template <int NT>
struct ColumnRows {
    const ActivationCodes* codes[NT];   // of column 8n + g, this lane's part
    const ActivationSums* sums[NT][2];  // of columns 8n + 2t, 8n + 2t + 1

    // Asks for block `block`, counted from the place; of the first `groups` groups of columns. AHEAD: here and now.
    template <int FORMAT, bool AHEAD>
    __device__ __forceinline__ void load(u32 block, int groups, BlockColumns<NT>& out) const {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            if (ends_before<FORMAT>(n, groups)) break;
            out.codes[n] = AHEAD ? load_ahead(codes[n] + 4 * block) : codes[n][4 * block];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const ActivationSums* from = sums[n][i] + block;
                if constexpr (AHEAD) {
                    const Words4 words = load_ahead((const Words4*)from);
                    out.sums[n][i] = {__uint_as_float(words.x), __uint_as_float(words.y), __uint_as_float(words.z), (i32)words.w};
                } else {
                    out.sums[n][i] = *from;
                }
            }
        }
    }

    __device__ __forceinline__ void advance(u32 blocks) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            codes[n] += 4 * blocks;
            sums[n][0] += blocks;
            sums[n][1] += blocks;
        }
    }
};

// Padded so that the eight rows and four column pairs of a store fall into different banks.
#define PARTIAL_STRIDE 36

// Partial sums of the split shape: [slice][column][row].
template <int NT>
struct SplitShared {
    float partial[SLICES][8 * NT][PARTIAL_STRIDE];
};

// The split shape. `columns` of its columns are live; `row_of(column)`: activation row of a live column.
// The window is open on this tile (`open_slice`). `store(row in tile, column, sum)`. All threads of the CTA must call it;
// it ends with a barrier.
template <int FORMAT, int NT, class RowOf, class Store>
__device__ __forceinline__ void split_product(Window<FORMAT>& window, const Weight& weight, u64 row_tile,
                                              const Activations& x, u32 columns, SplitShared<NT>& shared,
                                              const RowOf& row_of, const Store& store) {
    const u32 lane = threadIdx.x % 32;
    const u32 slice = threadIdx.x / 32;
    const u32 g = lane / 4;
    const u32 t = lane % 4;
    const u32 units = weight.blocks / Codec<FORMAT>::BLOCKS;
    const u32 begin = slice_begin(slice, units);
    const u32 count = (slice_begin(slice + 1, units) - begin) * Codec<FORMAT>::BLOCKS;
    const u32 first_block = begin * Codec<FORMAT>::BLOCKS;
    ColumnRows<NT> rows;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
        const auto row = [&](u32 column) { return (u64)row_of(column < columns ? column : 0) * weight.blocks + first_block; };
        rows.codes[n] = (const ActivationCodes*)(x.codes + row(8 * n + g) * ACTIVATION_CODE_BYTES) + t;
        rows.sums[n][0] = x.sums + row(8 * n + 2 * t);
        rows.sums[n][1] = x.sums + row(8 * n + 2 * t + 1);
    }
    Accumulators<NT> acc;
    acc.clear();
    LanePlanes<FORMAT> at(weight, row_tile, begin, lane);
    add_slice<FORMAT, NT>(window, at, count, rows, (int)((columns + 7) / 8), acc);
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

// Opens a window on this warp's slice of a row tile, so that its weights are on their way.
template <int FORMAT>
__device__ __forceinline__ void open_slice(Window<FORMAT>& window, const Weight& weight, u64 row_tile) {
    const u32 slice = threadIdx.x / 32 % SLICES;
    const u32 units = weight.blocks / Codec<FORMAT>::BLOCKS;
    const u32 begin = slice_begin(slice, units);
    const LanePlanes<FORMAT> at(weight, row_tile, begin, threadIdx.x % 32);
    window.open(at, (slice_begin(slice + 1, units) - begin) * Codec<FORMAT>::BLOCKS);
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

// The sweep shape for one row tile per warp; a warp without one only copies. `live` of the columns hold something.
// `shared.rows` must be filled and visible.
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
    const LanePlanes<FORMAT> at(weight, row_tile, 0, lane);
    Accumulators<NT> acc, total;
    acc.clear();
    total.clear();
    u32 slice = 0;
    u32 slice_end = slice_begin(1, units);
    const int groups = (int)((live + 7) / 8);
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
    // This stage's and the next one's weights, in registers.
    TileCodes raw[SWEEP_BLOCKS];
    ScaleRecord records[C::SUPER ? 1 : SWEEP_BLOCKS];
    UnitScales unit;
    if (has_tile) {
#pragma unroll
        for (u32 b = 0; b < SWEEP_BLOCKS; ++b) {
            if (b >= blocks) break;
            raw[b] = load_codes<FORMAT>(at, b);
            if (!C::SUPER || b == 0) records[C::SUPER ? 0 : b] = load_record<FORMAT>(at, b);
        }
    }
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
            if (!C::SUPER || block % 8 == 0) unit = unpack<FORMAT>(records[C::SUPER ? 0 : b]);
            const BlockScales<FORMAT> scales = block_scales<FORMAT>(unit, block % C::BLOCKS);
            u32 upper[4], lower[4];
            fragments<FORMAT, 0>(raw[b], upper);
            fragments<FORMAT, 1>(raw[b], lower);
            const u32 ahead = block + SWEEP_BLOCKS;
            if (ahead < blocks) {
                raw[b] = load_codes<FORMAT>(at, ahead);
                if (!C::SUPER) records[C::SUPER ? 0 : b] = load_record<FORMAT>(at, ahead);
            }
            // A super-block's scales arrive one stage early.
            if (C::SUPER && block % 8 == 6 && ahead < blocks) records[0] = load_record<FORMAT>(at, ahead / 8);
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                if (ends_before<FORMAT>(n, groups)) break;
                const ActivationCodes codes = stage.codes[b][8 * n + g][t];
                const ActivationSums sums[2] = {stage.sums[b][8 * n + 2 * t], stage.sums[b][8 * n + 2 * t + 1]};
                add_block<FORMAT>(upper, scales, 0, codes, sums, acc.at[0][n]);
                add_block<FORMAT>(lower, scales, 1, codes, sums, acc.at[1][n]);
            }
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
