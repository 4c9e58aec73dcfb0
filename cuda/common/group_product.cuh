// The warpgroup shape of a product kernel (9.0a): many columns against many rows, for prefill.
//
// A CTA takes 192 rows and 128 columns. Three warpgroups multiply, 16 rows a warp; a fourth copies weights and activations to
// shared memory, stages ahead, so that nobody who multiplies computes an address or waits for memory. Activations lie there in
// the order of the tensor cores; every warp takes its rows' codes apart in registers. Columns are multiplied in two halves: one
// half's products run while the other's sums are scaled. Sums over finished slices wait in shared memory.
// Bound by the scaling: four instructions per output and block of 32, of some five.
//
// The numbers, and the order they are added in, are tile.cuh's.
#pragma once
#include "common/group_stage.cuh"

// The record of row tile `tile`'s super-block, of this lane's row.
template <int FORMAT>
__device__ __forceinline__ ScaleRecord load_copied_record(const GroupShared<FORMAT>& shared, u32 tile, u32 lane) {
    ScaleRecord record;
    record.row = ((const Words4*)shared.records[tile])[lane];
    record.super = 0;
    if constexpr (FORMAT == FORMAT_Q2_K) record.super = ((const u32*)shared.supers[tile])[lane];
    if constexpr (FORMAT == FORMAT_Q6_K) record.super = ((const u16*)shared.supers[tile])[lane];
    return record;
}

// This lane's codes of half `m` of row tile `tile`: rows g + 16m and g + 16m + 8; as a whole tile's, whose first half they take
// the place of.
template <int FORMAT>
__device__ __forceinline__ TileCodes load_half(const GroupStage<FORMAT>& stage, u32 b, u32 tile, u32 m, u32 lane) {
    using S = Strides<FORMAT>;
    TileCodes raw;
    const u8* codes = stage.weight_codes[tile] + b * S::CODES;
    if constexpr (FORMAT == FORMAT_Q8_0) {
        raw.codes[0] = ((const Words4*)(codes + 512 * m))[lane];
    } else if constexpr (S::CODES == 256) {
        raw.pairs.x = ((const u32*)codes)[2 * lane + m];
    } else {
        const Words2 words = ((const Words2*)codes)[2 * lane + m];
        raw.codes[0].x = words.x;
        raw.codes[0].y = words.y;
    }
    if constexpr (TileBytes<FORMAT>::HAS_HIGH) {
        const u32* high = (const u32*)(stage.weight_high[tile] + b * S::HIGH);
        if constexpr (FORMAT == FORMAT_Q6_K) {
            raw.pairs.x = high[2 * lane + m];
        } else {
            raw.high = high[lane];
        }
    }
    return raw;
}

// Scales of the lane's two rows, where they are not super-blocks'.
template <int FORMAT>
__device__ __forceinline__ ScaleRecord load_half_scales(const GroupStage<FORMAT>& stage, u32 b, u32 tile, u32 m, u32 lane) {
    using S = Strides<FORMAT>;
    ScaleRecord record;
    const u8* scales = stage.weight_scales[tile] + b * S::SCALES;
    if constexpr (S::SCALES == 128) {
        const Words2 words = ((const Words2*)scales)[lane / 4 * 2 + m];
        record.row.x = words.x;
        record.row.y = words.y;
    } else if constexpr (FORMAT == FORMAT_MXFP4) {
        // Both halves' in one word.
        record.row.x = ((const u32*)scales)[lane / 4] >> (16 * m);
    } else {
        record.row.x = ((const u32*)scales)[lane / 4 * 2 + m];
    }
    return record;
}

// Four MXFP4 codes (the low 16 bits of `codes`) to bytes of 4 E2M1: each table yields seven bits of its sign's codes and
// zero for the others.
__device__ __forceinline__ u32 mxfp4_signed(u32 codes, u32 flipped) {
    return (permute_bytes(0x03020100u, 0x0c080604u, codes) | permute_bytes(0x7d7e7f00u, 0x74787a7cu, flipped)) << 1;
}

// Signed bytes as operand A has them: rows g, g + 8 of the first 16 columns, then of the last 16.
template <int FORMAT>
__device__ __forceinline__ void half_fragments(const TileCodes& raw, u32 m, u32 (&a)[4]) {
    if constexpr (FORMAT == FORMAT_MXFP4) {
        const u32 first = raw.codes[0].x;
        const u32 second = raw.codes[0].y;
        const u32 first_flipped = first ^ 0x88888888u;
        const u32 second_flipped = second ^ 0x88888888u;
        a[0] = mxfp4_signed(first, first_flipped);
        a[1] = mxfp4_signed(second, second_flipped);
        a[2] = mxfp4_signed(first >> 16, first_flipped >> 16);
        a[3] = mxfp4_signed(second >> 16, second_flipped >> 16);
    } else {
        TileCodes first = raw;
        first.high <<= 4 * m;
        fragments<FORMAT, 0>(first, a);
    }
}

// What a block is multiplied with, of rows g and g + 8 of the half.
template <int FORMAT>
struct HalfScales {
    static constexpr int PARTS = BlockScales<FORMAT>::PARTS;
    float code[PARTS][2];
    float least[PARTS][2];
};

template <int FORMAT>
__device__ __forceinline__ HalfScales<FORMAT> half_scales(const UnitScales& unit, u32 j, u32 m) {
    HalfScales<FORMAT> out;
    if constexpr (Codec<FORMAT>::SUPER) {
#pragma unroll
        for (int part = 0; part < HalfScales<FORMAT>::PARTS; ++part) {
            const RowScale own = super_scale<FORMAT>(unit, j, part);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                out.code[part][i] = from_quad(own.code, 2 * m + i);
                if constexpr (Codec<FORMAT>::MINIMUM) out.least[part][i] = from_quad(own.least, 2 * m + i);
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const u32* words = unit.words;
            if constexpr (Codec<FORMAT>::MINIMUM) {
                out.code[0][i] = low_half(words[i]);
                out.least[0][i] = high_half(words[i]);
            } else if constexpr (FORMAT == FORMAT_MXFP4) {
                // The codes are twice those of tile.cuh.
                out.code[0][i] = 0.5f * __uint_as_float(((words[0] >> (8 * i)) & 255) << 23);
            } else {
                out.code[0][i] = i == 0 ? low_half(words[0]) : high_half(words[0]);
            }
        }
    }
    return out;
}

// Shifts the sums of high bytes up to where the sums of low bytes are added to them.
template <int N>
__device__ __forceinline__ void shift_up(i32 (&sums)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] = (i32)((u32)sums[i] << 8);
}

// Sixteens of columns whose scales are asked for before the sums that they scale have come.
#define SCALES_AHEAD 2

// The scales of a lane's columns in the first sixteens of the h-th half of the columns.
template <int FORMAT, int N>
struct AheadScales {
    static constexpr int COUNT = N / 8 < SCALES_AHEAD ? N / 8 : SCALES_AHEAD;
    FourSums at[COUNT];

    __device__ __forceinline__ void load(const FourSums* sums, int h) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) at[i] = sums[(h * (N / 8) + i) * 4];
    }
};

// Adds the sums of the h-th half of the columns to `acc`. `own`: this lane's scales of the block, GROUP_COLUMNS / 4 of them
// before the next plane.
template <int FORMAT, int N>
__device__ __forceinline__ void add_sums(const i32 (&sums)[N], const HalfScales<FORMAT>& scales, int part, const FourSums* own,
                                         const AheadScales<FORMAT, N>& ahead, int h, float (&acc)[N]) {
    using C = Codec<FORMAT>;
    constexpr int HELD = AheadScales<FORMAT, N>::COUNT;
#pragma unroll
    for (int i = 0; i < N / 8; ++i) {
        // Of this lane's columns in sixteen.
        const auto four = [&](int plane) { return own[plane * (GROUP_COLUMNS / 4) + (h * (N / 8) + i) * 4]; };
        const FourSums scale = i < HELD ? ahead.at[i < HELD ? i : 0] : four(0);
        FourSums least;
        if constexpr (C::MINIMUM && C::HALVES) least = four(1 + part);
        if constexpr (C::MINIMUM && !C::HALVES) {
            const FourSums low = four(1), high = four(2);
#pragma unroll
            for (int j = 0; j < 4; ++j) least.at[j] = low.at[j] + high.at[j];
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int row = j % 4 / 2;
            const int column = j / 4 * 2 + j % 2;
            float& total = acc[8 * i + j];
            total = fmaf(scales.code[part][row], scale.at[column] * (float)sums[8 * i + j], total);
            if constexpr (C::MINIMUM) total = fmaf(scales.least[part][row], least.at[column], total);
        }
    }
}

// Begins, after `products_begin`, the products of one half of the columns with part `part` of fragment `a`: high bytes, or with
// KEEP low bytes added to `sums`. `operand`: of the half's first columns.
template <int FORMAT, bool KEEP, int N>
__device__ __forceinline__ void begin_products(i32 (&sums)[N], const u32 (&a)[4], int part, u32 operand) {
    const bool first = !Codec<FORMAT>::HALVES || part == 0;
    const bool second = !Codec<FORMAT>::HALVES || part == 1;
    products_add<KEEP>(sums, first ? a[0] : 0, first ? a[1] : 0, second ? a[2] : 0, second ? a[3] : 0,
                       operand + (KEEP ? OPERAND_STRIDE / 2 / 16 : 0));
    products_commit();
}

// What a warp reads of a block's weights: its codes, and scales where they are not super-blocks'.
template <int FORMAT>
struct HalfBlock {
    TileCodes codes;
    ScaleRecord scales;

    __device__ __forceinline__ void load(const GroupStage<FORMAT>& stage, u32 b, u32 tile, u32 m, u32 lane) {
        codes = load_half<FORMAT>(stage, b, tile, m, lane);
        if constexpr (!Codec<FORMAT>::SUPER) scales = load_half_scales<FORMAT>(stage, b, tile, m, lane);
    }
};

// The sums of this warp's 16 rows of the CTA's row tile `tile` with LIVE pieces of columns, in this thread's `shared.totals`;
// [4p + n]: columns 32p + 8n on, as mma has them.
//
// While a half's sums are shifted or scaled, products of the other half run; the weights of the next block are read before. (The
// assembler takes no product that runs from one block into the next: it would wait for each.)
template <int FORMAT, int LIVE>
__device__ __forceinline__ void consume(u32 blocks, u32 tile, u32 m, u32 lane, GroupShared<FORMAT>& shared) {
    using C = Codec<FORMAT>;
    constexpr int PARTS = HalfScales<FORMAT>::PARTS;
    const u32 units = blocks / C::BLOCKS;
    // Sums of one half of the columns, and how far its operand lies from the other's.
    constexpr int N = 8 * LIVE;
    constexpr u32 RIGHT = N / 4 * (OPERAND_STRIDE / 16);
    float acc[2][N];
#pragma unroll
    for (int i = 0; i < N; ++i) acc[0][i] = acc[1][i] = 0.0f;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) shared.totals[i][threadIdx.x] = {{0.0f, 0.0f, 0.0f, 0.0f}};
    u32 slice = 0;
    u32 slice_end = slice_begin(1, units);
    const auto end_slices = [&](u32 unit) {
        // Empty slices add zero, as in the split shape.
        while (slice < SLICES && unit == slice_end) {
#pragma unroll
            for (int i = 0; i < N / 2; ++i) {
                FourSums total = shared.totals[i][threadIdx.x];
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    float& own = acc[i / (N / 4)][i % (N / 4) * 4 + c];
                    total.at[c] += own;
                    own = 0.0f;
                }
                shared.totals[i][threadIdx.x] = total;
            }
            ++slice;
            slice_end = slice_begin(slice + 1, units);
        }
    };
    end_slices(0);
    UnitScales unit;
    HalfBlock<FORMAT> half;
    shared.full[0].wait(0);
    half.load(shared.stages[0], 0, tile, m, lane);
    // Blocks are not unrolled, so that the loop stays in the instruction cache next to the scheduler. Warps go through the
    // stages on their own. Behind the last block comes itself, for nothing.
#pragma unroll 1
    for (u32 block = 0; block < blocks; ++block) {
        const u32 b = block % GROUP_BLOCKS;
        const u32 place = block / GROUP_BLOCKS % GROUP_STAGES;
        const GroupStage<FORMAT>& stage = shared.stages[place];
        u32 a[4];
        half_fragments<FORMAT>(half.codes, m, a);
        if constexpr (C::SUPER) {
            if (block % 8 == 0) unit = unpack<FORMAT>(load_copied_record<FORMAT>(shared, tile, lane));
        } else {
            unit = unpack<FORMAT>(half.scales);
        }
        const HalfScales<FORMAT> scales = half_scales<FORMAT>(unit, block % C::BLOCKS, m);
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            const u32 operand = shared_operand(stage.codes[b]);
            i32 left[N], right[N];
            products_begin();
            begin_products<FORMAT, false>(left, a, part, operand);
            begin_products<FORMAT, false>(right, a, part, operand + RIGHT);
            if (part == 0) {
                const u32 next = block + 1 < blocks ? block + 1 : block;
                const u32 next_place = next / GROUP_BLOCKS % GROUP_STAGES;
                if (next % GROUP_BLOCKS == 0) shared.full[next_place].wait(next / GROUP_BLOCKS / GROUP_STAGES % 2);
                half.load(shared.stages[next_place], next % GROUP_BLOCKS, tile, m, lane);
            }
            products_wait<1>(left);
            shift_up(left);
            products_begin();
            begin_products<FORMAT, true>(left, a, part, operand);
            products_wait<1>(right);
            shift_up(right);
            products_begin();
            begin_products<FORMAT, true>(right, a, part, operand + RIGHT);
            const FourSums* own = (const FourSums*)stage.sums[b][0] + lane % 4;
            AheadScales<FORMAT, N> ahead;
            ahead.load(own, 0);
            products_wait<1>(left);
            add_sums<FORMAT>(left, scales, part, own, ahead, 0, acc[0]);
            ahead.load(own, 1);
            products_wait<0>(right);
            add_sums<FORMAT>(right, scales, part, own, ahead, 1, acc[1]);
        }
        if ((block + 1) % C::BLOCKS == 0) end_slices((block + 1) / C::BLOCKS);
        if (b + 1 == GROUP_BLOCKS) {
            __syncwarp();
            if (lane == 0) shared.empty[place].arrive();
        }
    }
}

// The same for `live` columns that hold something: code of its own for each number of pieces, because registers and products
// have their sizes at compile time. A warpgroup that is not `active` has nothing to do.
template <int FORMAT>
__device__ __forceinline__ void consume_live(u32 blocks, bool active, u32 live, GroupShared<FORMAT>& shared) {
    // Through a shuffle, so that the assembler keeps it in a register instead of asking for it in every block.
    const u32 thread = __shfl_sync(0xffffffffu, threadIdx.x, threadIdx.x % 32);
    const u32 lane = thread % 32;
    const u32 m = thread / 32 % 2;
    const u32 tile = thread / 64;
    if (!active) {
        if (lane > 0) return;
        for (u32 index = 0; index < blocks / GROUP_BLOCKS; ++index) {
            shared.full[index % GROUP_STAGES].wait(index / GROUP_STAGES % 2);
            shared.empty[index % GROUP_STAGES].arrive();
        }
    } else if (live > 3 * PIECE_COLUMNS) {
        consume<FORMAT, 4>(blocks, tile, m, lane, shared);
    } else if (live > 2 * PIECE_COLUMNS) {
        consume<FORMAT, 3>(blocks, tile, m, lane, shared);
    } else if (live > PIECE_COLUMNS) {
        consume<FORMAT, 2>(blocks, tile, m, lane, shared);
    } else {
        consume<FORMAT, 1>(blocks, tile, m, lane, shared);
    }
}

// Columns of a CTA: `first`, `first + stride` and so on begin groups of up to `width`, as far as they lie before `end`.
struct ColumnGroups {
    u32 first;
    u32 end;
    u32 stride;
    u32 width;
};

// The products of the CTA's row tiles, whose planes `planes_of(tile)` tells, with group after group of its columns.
// `active`: the warpgroup has something to do. `open(column, place)` tells what stands in column `place` of a group: the
// activation row of `column`, and leaves in `shared` what else is asked for later. `finish(first column, live)` is called by
// the threads that multiply when every sum of a group is in `shared.totals`. All threads of the CTA call it, once.
template <int FORMAT, class PlanesOf, class Open, class Finish>
__device__ __forceinline__ void group_products(u32 blocks, const Activations& x, const ColumnGroups& columns, bool active,
                                               GroupShared<FORMAT>& shared, const PlanesOf& planes_of, const Open& open,
                                               const Finish& finish) {
    const auto live_of = [&](u32 first) { return columns.end - first < columns.width ? columns.end - first : columns.width; };
    if (threadIdx.x >= GROUP_CONSUMERS) {
        release_registers<PRODUCER_REGISTERS>();
        for (u32 first = columns.first; first < columns.end; first += columns.stride) {
            __syncthreads();
            produce<FORMAT>(blocks, x, live_of(first), shared);
            __syncthreads();
            __syncthreads();
        }
        return;
    }
    claim_registers<CONSUMER_REGISTERS>();
    if (threadIdx.x < GROUP_TILES) shared.tiles[threadIdx.x] = planes_of(threadIdx.x);
    for (u32 first = columns.first; first < columns.end; first += columns.stride) {
        const u32 live = live_of(first);
        if (threadIdx.x < GROUP_COLUMNS) {
            shared.rows[threadIdx.x] = open(first + (threadIdx.x < live ? threadIdx.x : 0), threadIdx.x);
        }
        if (threadIdx.x < GROUP_STAGES) {
            shared.full[threadIdx.x].open(GROUP_PRODUCERS);
            shared.empty[threadIdx.x].open(GROUP_CONSUMERS / 32);
        }
        __syncthreads();
        consume_live<FORMAT>(blocks, active, live, shared);
        __syncthreads();
        if (threadIdx.x < GROUP_STAGES) {
            shared.full[threadIdx.x].close();
            shared.empty[threadIdx.x].close();
        }
        finish(first, live);
        __syncthreads();
    }
}

// Rows that a CTA has: `row_tiles` row tiles from some first on, of which it takes up to GROUP_TILES. The tensor cores want a
// warpgroup whole: a warp without a tile works on the first one, for nothing.
struct GroupRows {
    u32 row_tiles;

    __device__ __forceinline__ u32 existing(u32 tile) const { return tile < row_tiles ? tile : 0; }
    __device__ __forceinline__ bool active() const { return threadIdx.x / 128 * 2 < row_tiles; }

    // Calls `store(row from the first tile's on, column, sum)` once for each of the sums of `live` columns.
    template <int FORMAT, class Store>
    __device__ __forceinline__ void store_sums(const GroupShared<FORMAT>& shared, u32 live, const Store& store) const {
        const u32 lane = threadIdx.x % 32;
        if (threadIdx.x / 64 >= row_tiles) return;
        const u32 row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll 1
        for (u32 i = 0; 8 * i < live; ++i) {
            const FourSums total = shared.totals[i][threadIdx.x];
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const u32 column = 8 * i + 2 * (lane % 4) + c % 2;
                if (column < live) store(row + 8 * (c / 2), column, total.at[c] * Codec<FORMAT>::POST);
            }
        }
    }
};
