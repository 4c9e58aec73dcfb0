// The warpgroup shape of a product kernel (9.0a): many columns against many rows, for prefill.
//
// A CTA takes 192 rows and 128 columns. Three warpgroups multiply, 16 rows a warp; a fourth copies weights and activations to
// shared memory, stages ahead, so that nobody who multiplies computes an address or waits for memory. Activations lie there as
// binary16 in the order of the tensor cores; every warp takes its rows' codes apart in registers, a block ahead. Sums over
// finished slices wait in shared memory. Nothing of the loop may be spilled: beside so much shared memory no first-level cache is
// left that would hold it.
// Bound by issue, 180 (MXFP4) to 290 (Q4_K) instructions a warp and block, of which 64 to 192 scale, and by the reads of columns'
// scales from shared memory: each lane needs 32 of a block, or 64 where weights have a minimum.
//
// The numbers, and the order they are added in, are tile.cuh's.
#pragma once
#include "common/group_stage.cuh"

// Where a lane finds its own in a block: rows g + 16m and g + 16m + 8 of its warp's row tile.
template <int FORMAT>
struct LanePlaces {
    using S = Strides<FORMAT>;
    using Stage = GroupStage<FORMAT>;
    using B = TileBytes<FORMAT>;
    u32 codes;
    u32 high;
    u32 scales;

    __device__ __forceinline__ LanePlaces(const Stage& stage, u32 tile, u32 m, u32 lane) {
        const auto place_of = [&](const void* place) { return kept((u32)((const u8*)place - (const u8*)&stage)); };
        const u32 half = 2 * lane + m;
        codes = place_of(stage.weight_codes[tile] + (FORMAT == FORMAT_Q8_0 ? 512 * m + 16 * lane : half * (S::CODES / 64)));
        high = place_of(stage.weight_high[tile] + (FORMAT == FORMAT_Q6_K ? half : lane) * 4);
        scales = place_of(stage.weight_scales[tile] + (lane / 4 * 2 + m) * (S::SCALES / 16));
    }
};

template <class T, int FORMAT>
__device__ __forceinline__ const T& at_place(const GroupStage<FORMAT>& stage, u32 place) {
    return *(const T*)((const u8*)&stage + place);
}

// This lane's codes, as a whole tile's, whose first half they take the place of.
template <int FORMAT>
__device__ __forceinline__ TileCodes load_half(const GroupStage<FORMAT>& stage, u32 b, const LanePlaces<FORMAT>& places) {
    using S = Strides<FORMAT>;
    using B = TileBytes<FORMAT>;
    TileCodes raw;
    if constexpr (FORMAT == FORMAT_Q8_0) {
        raw.codes[0] = at_place<Words4>(stage, places.codes + b * B::CODES);
    } else if constexpr (S::CODES == 256) {
        raw.pairs.x = at_place<u32>(stage, places.codes + b * B::CODES);
    } else {
        const Words2 words = at_place<Words2>(stage, places.codes + b * B::CODES);
        raw.codes[0].x = words.x;
        raw.codes[0].y = words.y;
    }
    if constexpr (FORMAT == FORMAT_Q6_K) {
        raw.pairs.x = at_place<u32>(stage, places.high + b * B::HIGH);
    } else if constexpr (TileBytes<FORMAT>::HAS_HIGH) {
        raw.high = at_place<u32>(stage, places.high + b * B::HIGH);
    }
    return raw;
}

// Scales of the lane's two rows, where they are not super-blocks'.
template <int FORMAT>
__device__ __forceinline__ ScaleRecord load_half_scales(const GroupStage<FORMAT>& stage, u32 b,
                                                        const LanePlaces<FORMAT>& places) {
    using S = Strides<FORMAT>;
    using B = TileBytes<FORMAT>;
    ScaleRecord record;
    if constexpr (S::SCALES == 128) {
        const Words2 words = at_place<Words2>(stage, places.scales + b * B::SCALES);
        record.row.x = words.x;
        record.row.y = words.y;
    } else if constexpr (FORMAT == FORMAT_MXFP4) {
        record.row.x = at_place<u16>(stage, places.scales + b * B::SCALES);
    } else {
        record.row.x = at_place<u32>(stage, places.scales + b * B::SCALES);
    }
    return record;
}

// MXFP4's scales are powers of two, and its codes take them along to the tensor cores where binary16 has room for all of a
// warp's: a code is E2M1 2^(e + MXFP4_SHIFT) for scales of 2^-15 to 2^0. A block with another one goes without, and its sums are
// multiplied.
#define MXFP4_SHIFT 8
#define MXFP4_FIRST (127 - 15)

// What sums of this shape are multiplied with at the end.
template <int FORMAT>
struct GroupPost {
    static constexpr float VALUE = FORMAT == FORMAT_MXFP4 ? 1.0f / (1 << MXFP4_SHIFT) : Codec<FORMAT>::POST;
};

// MXFP4's scales of a lane's two rows (a byte each) as binary16, twice each, and whether the warp's sums are to be multiplied.
struct FoldedScales {
    u32 at[2];
    bool left;

    __device__ __forceinline__ void fold(u32 bytes) {
        // A byte below the first borrows, which is seen in the bits that none of the sixteen has.
        const u32 steps = bytes - MXFP4_FIRST * 0x0101u;
        left = __any_sync(0xffffffffu, (steps & ~0x0f0fu) != 0);
        at[0] = ((steps & 15) + MXFP4_SHIFT) * 0x04000400u;
        at[1] = ((steps >> 8 & 15) + MXFP4_SHIFT) * 0x04000400u;
        if (__builtin_expect(left, false)) at[0] = at[1] = 15 * 0x04000400u;
    }

    // What the sums of row g + 8 `row` are multiplied with.
    __device__ __forceinline__ static float rest(u32 bytes, u32 row) {
        return __uint_as_float((bytes >> (8 * row) & 255) << 23) * (1 << MXFP4_SHIFT);
    }
};

// The upper bytes of E2M1 as binary16 (the lower ones are zero): of codes 0 to 3 without sign, and with it, less their last bit,
// which is zero too.
struct HalfTables {
    u32 plain;
    u32 negative;

    __device__ __forceinline__ HalfTables() {
        // A bit that no thread's number has: or the assembler would keep them elsewhere and bring them for every block.
        const u32 none = __shfl_sync(0xffffffffu, threadIdx.x, threadIdx.x % 32) & 0x80000000u;
        plain = 0x3e3c3800u | none;
        negative = 0x5f5e5c40u | none;
    }

    // Four codes (the low 16 bits of `codes`). Each table yields zero for codes whose sign it does not have.
    __device__ __forceinline__ void decode(u32 codes, u32 flipped, u32& first, u32& second) const {
        const u32 upper = permute_bytes(plain, 0x46444240u, codes) + 2 * permute_bytes(negative, 0x63626160u, flipped);
        first = permute_bytes(upper, 0, 0x1404);
        second = permute_bytes(upper, 0, 0x3424);
    }
};

// Four signed bytes as binary16, each 1152 too large.
__device__ __forceinline__ void widen_bytes(u32 bytes, u32& first, u32& second) {
    // Behind 0x64 a byte is 1024 + byte.
    const u32 offset = bytes ^ 0x80808080u;
    first = permute_bytes(offset, 0x64646464u, 0x4140);
    second = permute_bytes(offset, 0x64646464u, 0x4342);
}

// Codes as operands A of two products have them: elements 4t, 4t + 1 of rows g and g + 8, then 4t + 2, 4t + 3.
template <int FORMAT>
__device__ __forceinline__ void half_fragments(const HalfTables& tables, const TileCodes& raw, u32 m, u32 (&a)[2][4]) {
    if constexpr (FORMAT == FORMAT_MXFP4) {
        const u32 words[2] = {raw.codes[0].x, raw.codes[0].y};
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const u32 flipped = words[row] ^ 0x88888888u;
            tables.decode(words[row], flipped, a[0][row], a[0][2 + row]);
            tables.decode(words[row] >> 16, flipped >> 16, a[1][row], a[1][2 + row]);
        }
    } else {
        TileCodes first = raw;
        first.high <<= 4 * m;
        u32 bytes[4];
        fragments<FORMAT, 0>(first, bytes);
#pragma unroll
        for (int i = 0; i < 4; ++i) widen_bytes(bytes[i], a[i / 2][i % 2], a[i / 2][2 + i % 2]);
    }
}

// What a block is multiplied with, of rows g and g + 8 of the half.
template <int FORMAT>
struct HalfScales {
    static constexpr int PARTS = BlockScales<FORMAT>::PARTS;
    float code[PARTS][2];
    float least[PARTS][2];
};

// From the scales of a block that is not part of a super-block.
template <int FORMAT>
__device__ __forceinline__ HalfScales<FORMAT> half_scales(const UnitScales& unit) {
    HalfScales<FORMAT> out;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const u32* words = unit.words;
        if constexpr (Codec<FORMAT>::MINIMUM) {
            out.code[0][i] = low_half(words[i]);
            out.least[0][i] = high_half(words[i]);
        } else if constexpr (FORMAT == FORMAT_MXFP4) {
            out.code[0][i] = 1.0f;
        } else {
            out.code[0][i] = i == 0 ? low_half(words[0]) : high_half(words[0]);
        }
    }
    return out;
}

// Takes the scales of a warp's half of a row tile's super-block apart: a lane those of one row and four blocks.
template <int FORMAT>
__device__ __forceinline__ void take_apart(const GroupShared<FORMAT>& shared, u32 tile, u32 m, u32 lane,
                                           WarpScales<FORMAT>& scales) {
    constexpr u32 PARTS = HalfScales<FORMAT>::PARTS;
    const u32 g = lane % 8;
    const u32 i = lane / 8 % 2;
    // As lanes of the other shapes have rows: lane 4g + t row g + 8t.
    const u32 place = 4 * g + 2 * m + i;
    ScaleRecord record;
    record.row = ((const Words4*)shared.records[tile])[place];
    record.super = 0;
    if constexpr (FORMAT == FORMAT_Q2_K) record.super = ((const u32*)shared.supers[tile])[place];
    if constexpr (FORMAT == FORMAT_Q6_K) record.super = ((const u16*)shared.supers[tile])[place];
    const UnitScales unit = unpack<FORMAT>(record);
    __syncwarp();
#pragma unroll
    for (u32 b = 0; b < 4; ++b) {
        const u32 block = lane / 16 * 4 + b;
        float* to = &scales.rows[block][g].at[0][i];
#pragma unroll
        for (u32 part = 0; part < PARTS; ++part) {
            const RowScale own = super_scale<FORMAT>(unit, block, part);
            to[2 * part] = own.code;
            if constexpr (Codec<FORMAT>::MINIMUM) to[2 * (PARTS + part)] = own.least;
        }
    }
    __syncwarp();
}

// From a super-block's, of its block `block` and this lane's rows.
template <int FORMAT>
__device__ __forceinline__ HalfScales<FORMAT> half_scales(const WarpScales<FORMAT>& scales, u32 block, u32 lane) {
    constexpr u32 PARTS = HalfScales<FORMAT>::PARTS;
    const typename WarpScales<FORMAT>::Rows rows = scales.rows[block][lane / 4];
    HalfScales<FORMAT> out;
#pragma unroll
    for (u32 part = 0; part < PARTS; ++part) {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            out.code[part][i] = rows.at[part][i];
            if constexpr (Codec<FORMAT>::MINIMUM) out.least[part][i] = rows.at[PARTS + part][i];
        }
    }
    return out;
}

// Adds a block's sums to `acc`. `own`: this lane's scales of the block, GROUP_COLUMNS / 4 of them before the next plane.
template <int FORMAT, int N>
__device__ __forceinline__ void add_sums(const float (&sums)[N], const HalfScales<FORMAT>& scales, int part, const FourSums* own,
                                         float (&acc)[N]) {
    using C = Codec<FORMAT>;
#pragma unroll
    for (int i = 0; i < N / 8; ++i) {
        // Of this lane's columns in sixteen.
        const auto four = [&](int plane) { return own[plane * (GROUP_COLUMNS / 4) + i * 4]; };
        const FourSums scale = four(0);
        FourSums least;
        if constexpr (C::MINIMUM) least = four(1 + part);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int row = j % 4 / 2;
            const int column = j / 4 * 2 + j % 2;
            float& total = acc[8 * i + j];
            if constexpr (FORMAT == FORMAT_MXFP4) {
                total = fmaf(scale.at[column], sums[8 * i + j], total);
            } else {
                total = add_scaled<FORMAT>(scales.code[part][row], scale.at[column], sums[8 * i + j], total);
            }
            if constexpr (C::MINIMUM) total = fmaf(scales.least[part][row], least.at[column], total);
        }
    }
}

// Begins the products of all columns with both halves of a block, or with half `part` where each has scales of its own.
template <int FORMAT, int N>
__device__ __forceinline__ void begin_products(float (&sums)[N], const u32 (&a)[2][4], int part, u32 operand) {
    constexpr u32 HALF = 2;
    if constexpr (Codec<FORMAT>::HALVES) {
        products_add<false>(sums, a[part], operand + part * HALF);
    } else {
        products_add<false>(sums, a[0], operand);
        products_add<true>(sums, a[1], operand + HALF);
    }
    products_commit();
}

// Multiplies the sums of rows g and g + 8.
template <int N>
__device__ __forceinline__ void scale_rows(float (&sums)[N], float first, float second) {
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] *= i % 4 < 2 ? first : second;
}

// The weights of a block on their way to the tensor cores: all but the last step, which must come right before the products.
template <int FORMAT>
struct Fragments {
    u32 words[2][4];
    ScaleRecord record;
    FoldedScales folded;
    u32 operand;  // of the block's activations

    __device__ __forceinline__ void fetch(const GroupShared<FORMAT>& shared, u32 place, const LanePlaces<FORMAT>& places,
                                          const HalfTables& tables, u32 m) {
        const GroupStage<FORMAT>& stage = shared.stages[place / GROUP_BLOCKS];
        const u32 b = place % GROUP_BLOCKS;
        operand = shared_operand(shared.codes[place / GROUP_BLOCKS]) + b * (ACTIVATION_CODE_BYTES / 16);
        const TileCodes codes = load_half(stage, b, places);
        if constexpr (!Codec<FORMAT>::SUPER) record = load_half_scales(stage, b, places);
        if constexpr (FORMAT == FORMAT_MXFP4) folded.fold(record.row.x);
        half_fragments<FORMAT>(tables, codes, m, words);
    }

    __device__ __forceinline__ void finish(u32 (&a)[2][4]) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const u32 word = words[i / 4][i % 4];
            u32& to = a[i / 4][i % 4];
            to = FORMAT == FORMAT_MXFP4 ? multiply_halves(word, folded.at[i % 2]) : subtract_halves(word, 0x64806480u);
        }
    }
};

// The sums of this warp's 16 rows of the CTA's row tile `tile` with LIVE pieces of columns, in this thread's `shared.totals`;
// [4p + n]: columns 32p + 8n on, as mma has them.
//
// While products run, the weights of the next block are taken apart. (The assembler takes no product that runs from one block
// into the next, nor fragments that come from the one before: it would wait for each.)
template <int FORMAT, int LIVE>
__device__ __forceinline__ void consume(u32 blocks, u32 tile, u32 m, u32 lane, GroupShared<FORMAT>& shared) {
    using C = Codec<FORMAT>;
    constexpr int PARTS = HalfScales<FORMAT>::PARTS;
    constexpr int N = 16 * LIVE;
    const LanePlaces<FORMAT> places(shared.stages[0], tile, m, lane);
    const HalfTables tables;
#pragma unroll
    for (int i = 0; i < N / 4; ++i) shared.totals[i][threadIdx.x] = {{0.0f, 0.0f, 0.0f, 0.0f}};
    WarpScales<FORMAT>& supers = shared.scales[2 * tile + m];
    Fragments<FORMAT> next;
    shared.full[0].wait(0);
    publish_operands();
    next.fetch(shared, 0, places, tables, m);
    u32 block = 0;
#pragma unroll 1
    for (u32 slice = 0; slice < SLICES; ++slice) {
        const u32 end = slice_begin(slice + 1, blocks / C::BLOCKS) * C::BLOCKS;
        float acc[N];
#pragma unroll
        for (int i = 0; i < N; ++i) acc[i] = 0.0f;
        // Blocks are not unrolled, so that the loop stays in the instruction cache next to the scheduler. Warps go through the
        // stages on their own.
#pragma unroll 1
        for (; block < end; ++block) {
            HalfScales<FORMAT> scales;
            if constexpr (C::SUPER) {
                if (block % 8 == 0) take_apart(shared, tile, m, lane, supers);
                scales = half_scales(supers, block % 8, lane);
            } else {
                scales = half_scales<FORMAT>(unpack<FORMAT>(next.record));
            }
            const u32 bytes = next.record.row.x;
            const bool left = FORMAT == FORMAT_MXFP4 && next.folded.left;
            const u32 operand = next.operand;
            u32 a[2][4];
            next.finish(a);
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                float sums[N];
                products_begin();
                begin_products<FORMAT>(sums, a, part, operand);
                if (part == PARTS - 1) {
                    // Behind the last block comes whatever is there, for nothing.
                    const u32 place = (block + 1) % GROUP_PLACES;
                    if (place % GROUP_BLOCKS == 0 && block + 1 < blocks) {
                        shared.full[place / GROUP_BLOCKS].wait((block + 1) / GROUP_PLACES % 2);
                        publish_operands();
                    }
                    next.fetch(shared, place, places, tables, m);
                }
                const FourSums* own = (const FourSums*)shared.sums[block % GroupSums<FORMAT>::PLACES].at[0] + lane % 4;
                products_wait<0>(sums);
                if (__builtin_expect(left, false)) scale_rows(sums, FoldedScales::rest(bytes, 0), FoldedScales::rest(bytes, 1));
                add_sums<FORMAT>(sums, scales, part, own, acc);
            }
            if (block % GROUP_BLOCKS == GROUP_BLOCKS - 1) shared.empty[block % GROUP_PLACES / GROUP_BLOCKS].arrive();
        }
        // Empty slices add zero, as in the split shape.
#pragma unroll
        for (int i = 0; i < N / 4; ++i) {
            FourSums total = shared.totals[i][threadIdx.x];
#pragma unroll
            for (int c = 0; c < 4; ++c) total.at[c] += acc[4 * i + c];
            shared.totals[i][threadIdx.x] = total;
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
    if (__ballot_sync(0xffffffffu, active) == 0) {
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
// the threads that multiply when every sum of a group is in `shared.totals`, `store(first column, live)` by all when they have
// finished. All threads of the CTA call this, once.
template <int FORMAT, class PlanesOf, class Open, class Finish, class Store>
__device__ __forceinline__ void group_products(u32 blocks, const Activations& x, const ColumnGroups& columns, bool active,
                                               GroupShared<FORMAT>& shared, const PlanesOf& planes_of, const Open& open,
                                               const Finish& finish, const Store& store) {
    const auto live_of = [&](u32 first) { return columns.end - first < columns.width ? columns.end - first : columns.width; };
    if (threadIdx.x >= GROUP_CONSUMERS) {
        release_registers<PRODUCER_REGISTERS>();
        for (u32 first = columns.first; first < columns.end; first += columns.stride) {
            __syncthreads();
            produce_live<FORMAT>(blocks, x, live_of(first), shared);
            __syncthreads();
            __syncthreads();
            store(first, live_of(first));
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
            shared.full[threadIdx.x].open(2 * GROUP_PRODUCERS);
            shared.empty[threadIdx.x].open(GROUP_CONSUMERS);
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
        store(first, live);
        __syncthreads();
    }
}

// An output, without its row of y: null where there is none.
struct OutputRow {
    float* y;
    const float* residual;  // as y, or null
    float bias;
    bool biased;

    __device__ __forceinline__ OutputRow(float* y, const float* residual, const float* bias, u32 output, u32 outputs)
        : y(output < outputs ? y + output : nullptr), residual(output < outputs && residual ? residual + output : nullptr),
          bias(output < outputs && bias ? bias[output] : 0.0f), biased(bias) {}
};

// A column that holds nothing.
#define NO_PLACE 0xffffffffffffffffull

// Rows that a CTA has: `row_tiles` row tiles from some first on, of which it takes up to GROUP_TILES. The tensor cores want a
// warpgroup whole: a warp without a tile works on the first one, for nothing.
struct GroupRows {
    u32 row_tiles;

    __device__ __forceinline__ u32 existing(u32 tile) const { return tile < row_tiles ? tile : 0; }
    __device__ __forceinline__ bool active() const { return threadIdx.x / 128 * 2 < row_tiles; }

    // The first of the two rows that this thread has, from the first tile's on; the second is 8 further.
    __device__ __forceinline__ u32 own_row() const { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4; }

    // Stores the sums of `live` columns, with bias and residual. `own`: this thread's two rows; `row_of(column)`: a column's row
    // of y. Nothing here may wait more often than it must: no other CTA is there to work meanwhile.
    template <int FORMAT, class RowOf>
    __device__ __forceinline__ void store_sums(const GroupShared<FORMAT>& shared, u32 live, u32 outputs,
                                               const OutputRow (&own)[2], const RowOf& row_of) const {
        constexpr u32 EIGHTS = 4;
        if (threadIdx.x / 64 >= row_tiles) return;
#pragma unroll 1
        for (u32 first = 0; 8 * first < live; first += EIGHTS) {
            u64 places[EIGHTS][2];
            float before[EIGHTS][4];
#pragma unroll
            for (u32 i = 0; i < EIGHTS; ++i) {
#pragma unroll
                for (u32 c = 0; c < 4; ++c) {
                    const u32 column = 8 * (first + i) + threadIdx.x % 4 * 2 + c % 2;
                    const OutputRow& row = own[c / 2];
                    if (c < 2) places[i][c] = column < live ? (u64)row_of(column) * outputs : NO_PLACE;
                    before[i][c] = 0.0f;
                    if (row.residual && places[i][c % 2] != NO_PLACE) before[i][c] = row.residual[places[i][c % 2]];
                }
            }
#pragma unroll
            for (u32 i = 0; i < EIGHTS; ++i) {
                const FourSums total = shared.totals[first + i][threadIdx.x];
#pragma unroll
                for (u32 c = 0; c < 4; ++c) {
                    const OutputRow& row = own[c / 2];
                    float sum = total.at[c] * GroupPost<FORMAT>::VALUE;
                    if (row.biased) sum += row.bias;
                    if (row.residual) sum += before[i][c];
                    if (row.y && places[i][c % 2] != NO_PLACE) row.y[places[i][c % 2]] = sum;
                }
            }
        }
    }
};
