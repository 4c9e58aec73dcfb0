// What a CTA of warpgroups (common/group_product.cuh) keeps in shared memory, and the warpgroup that fills it.
#pragma once
#include "common/product.cuh"
#include "common/warpgroup.cuh"

// Threads that multiply, threads that copy.
#define GROUP_CONSUMERS 384
#define GROUP_PRODUCERS 128
#define GROUP_THREADS (GROUP_CONSUMERS + GROUP_PRODUCERS)
// Registers of each; together they are all that a multiprocessor has.
#define CONSUMER_REGISTERS 160
#define PRODUCER_REGISTERS 32
#define GROUP_TILES 6
#define GROUP_COLUMNS 128
// Columns of one piece, and pieces.
#define PIECE_COLUMNS 32
#define PIECES (GROUP_COLUMNS / PIECE_COLUMNS)
// Blocks copied per stage, and stages.
#define GROUP_BLOCKS 2
#define GROUP_STAGES 4
static_assert(GROUP_STAGES * GROUP_BLOCKS <= 8, "the record of a super-block is taken out before the next one comes");
static_assert(GROUP_PRODUCERS == GROUP_COLUMNS && GROUP_BLOCKS == 2, "who copies what");

// [eight columns][high, low][half of the block][column][element]
typedef u8 GroupCodes[GROUP_COLUMNS / 8][2][2][8][16];

// Bytes of a row tile's planes in a stage, and of a super-block's record; 16 where the format has none.
template <int FORMAT>
struct TileBytes {
    using S = Strides<FORMAT>;
    static constexpr bool HAS_HIGH = FORMAT == FORMAT_Q5_0 || FORMAT == FORMAT_Q5_1 || FORMAT == FORMAT_Q5_K ||
                                     FORMAT == FORMAT_Q3_K || FORMAT == FORMAT_Q6_K;
    static constexpr bool HAS_SUPERS = FORMAT == FORMAT_Q2_K || FORMAT == FORMAT_Q6_K;
    static constexpr u32 CODES = GROUP_BLOCKS * S::CODES;
    static constexpr u32 HIGH = HAS_HIGH ? GROUP_BLOCKS * S::HIGH : 16;
    static constexpr u32 SCALES = Codec<FORMAT>::SUPER ? 16 : GROUP_BLOCKS * S::SCALES;
    static constexpr u32 RECORD = Codec<FORMAT>::SUPER ? S::SCALES : 16;
    static constexpr u32 SUPERS = HAS_SUPERS ? S::SUPERS : 16;
};

template <int FORMAT>
struct alignas(16) GroupStage {
    using B = TileBytes<FORMAT>;
    // Scales, for formats with a minimum also both halves' sums of codes; columns as `sums_place` has them.
    static constexpr u32 SUMS = Codec<FORMAT>::MINIMUM ? 3 : 1;
    GroupCodes codes[GROUP_BLOCKS];
    alignas(16) float sums[GROUP_BLOCKS][SUMS][GROUP_COLUMNS];
    u8 weight_codes[GROUP_TILES][B::CODES];
    u8 weight_high[GROUP_TILES][B::HIGH];
    u8 weight_scales[GROUP_TILES][B::SCALES];
};

// Where the sums of a column lie: a lane's four of sixteen columns side by side.
__device__ __forceinline__ u32 sums_place(u32 column) {
    return column / 16 * 16 + column % 8 / 2 * 4 + column / 8 % 2 * 2 + column % 2;
}

struct alignas(16) FourSums {
    float at[4];
};

// Where a row tile's planes begin.
struct TilePlanes {
    const u8* codes;
    const u8* high;
    const u8* scales;
    const u8* supers;
};

template <int FORMAT>
struct GroupShared {
    using B = TileBytes<FORMAT>;
    GroupStage<FORMAT> stages[GROUP_STAGES];
    // Of the super-block that begins next; a lane takes its own out as it begins.
    alignas(16) u8 records[GROUP_TILES][B::RECORD];
    alignas(16) u8 supers[GROUP_TILES][B::SUPERS];
    FourSums totals[PIECES * 4][GROUP_CONSUMERS];  // each thread's own
    TilePlanes tiles[GROUP_TILES];
    PhaseBarrier full[GROUP_STAGES];   // every producer's copies have ended
    PhaseBarrier empty[GROUP_STAGES];  // every warp that multiplies has left
    u32 rows[GROUP_COLUMNS];   // activation row of each column; dead columns name some row that exists
    u32 pairs[GROUP_COLUMNS];  // of experts' products
};

static_assert(sizeof(GroupShared<WEIGHT_FORMAT>) == GROUP_SHARED_BYTES, "host and device disagree on the shared memory");

// The planes of row tile `row_tile`, counted through all experts.
template <int FORMAT>
__device__ __forceinline__ TilePlanes tile_planes(const Weight& weight, u64 row_tile) {
    const LanePlanes<FORMAT> at(weight, row_tile, 0, 0);
    return {at.codes, at.high, at.scales, at.supers};
}

// Starts this producer's share of the copies of `live` bytes behind `offset` of each tile's plane; BYTES have room.
template <u32 BYTES>
__device__ __forceinline__ void copy_planes(u8 (&target)[GROUP_TILES][BYTES], const TilePlanes* tiles,
                                            const u8* TilePlanes::*plane, u64 offset, u32 live) {
    constexpr u32 PARTS = BYTES / 16;
    constexpr u32 ALL = GROUP_TILES * PARTS;
#pragma unroll
    for (u32 first = 0; first < ALL; first += GROUP_PRODUCERS) {
        const u32 index = first + threadIdx.x % GROUP_PRODUCERS;
        if (first + GROUP_PRODUCERS > ALL && index >= ALL) break;
        const u32 part = index % PARTS * 16;
        if (part < live) copy_async(&target[index / PARTS][part], tiles[index / PARTS].*plane + offset + part, true);
    }
}

// What the copying warpgroup does for one product of `blocks` blocks and `live` columns: stage after stage, as places become
// free. A warp asks for all 64 bytes of eight columns' codes at once, eight lanes for sixteen of them each, so that they are
// fetched once and their places in shared memory are 128 bytes in a row.
template <int FORMAT>
__device__ __forceinline__ void produce(u32 blocks, const Activations& x, u32 live, GroupShared<FORMAT>& shared) {
    using C = Codec<FORMAT>;
    using S = Strides<FORMAT>;
    using B = TileBytes<FORMAT>;
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32 % 4;
    const u32 pieces = (live + PIECE_COLUMNS - 1) / PIECE_COLUMNS;
    const u32 part = lane / 8;
    // Of column 32 i + `column`, and of column 64 i + `summed`, whose sums this lane copies for block lane % 2 of each stage.
    const u32 column = 8 * warp + lane % 8;
    const u32 summed = 16 * warp + lane / 2;
    u32 codes[PIECES], sums[PIECES / 2];
#pragma unroll
    for (u32 i = 0; i < PIECES; ++i) codes[i] = shared.rows[32 * i + column] * blocks;
#pragma unroll
    for (u32 i = 0; i < PIECES / 2; ++i) sums[i] = shared.rows[64 * i + summed] * blocks + lane % 2;
    u32 place = 0;
    u32 round = 0;
#pragma unroll 1
    for (u32 block = 0; block < blocks; block += GROUP_BLOCKS) {
        GroupStage<FORMAT>& stage = shared.stages[place];
        if (round > 0) shared.empty[place].wait((round - 1) % 2);
        const u32 count = blocks - block < GROUP_BLOCKS ? blocks - block : GROUP_BLOCKS;
#pragma unroll
        for (u32 i = 0; i < PIECES; ++i) {
            if (i >= pieces) break;
            const u8* from = x.codes + (u64)(codes[i] + block) * ACTIVATION_CODE_BYTES + part * 16;
#pragma unroll
            for (u32 b = 0; b < GROUP_BLOCKS; ++b) {
                if (b >= count) break;
                copy_async(stage.codes[b][4 * i + warp][part / 2][part % 2][lane % 8], from + b * ACTIVATION_CODE_BYTES, true);
            }
        }
#pragma unroll
        for (u32 i = 0; i < PIECES / 2; ++i) {
            if (64 * i + summed >= pieces * PIECE_COLUMNS || lane % 2 >= count) break;
            const float* from = (const float*)(x.sums + (sums[i] + block));
#pragma unroll
            for (u32 s = 0; s < GroupStage<FORMAT>::SUMS; ++s) {
                copy_bytes_async<4>(&stage.sums[lane % 2][s][sums_place(64 * i + summed)], from + s);
            }
        }
        copy_planes(stage.weight_codes, shared.tiles, &TilePlanes::codes, (u64)block * S::CODES, count * S::CODES);
        if constexpr (B::HAS_HIGH) {
            copy_planes(stage.weight_high, shared.tiles, &TilePlanes::high, (u64)block * S::HIGH, count * S::HIGH);
        }
        if constexpr (!C::SUPER) {
            copy_planes(stage.weight_scales, shared.tiles, &TilePlanes::scales, (u64)block * S::SCALES, count * S::SCALES);
        } else if (block % 8 == 0) {
            copy_planes(shared.records, shared.tiles, &TilePlanes::scales, (u64)(block / 8) * S::SCALES, S::SCALES);
            if constexpr (B::HAS_SUPERS) {
                copy_planes(shared.supers, shared.tiles, &TilePlanes::supers, (u64)(block / 8) * S::SUPERS, S::SUPERS);
            }
        }
        commit_copies();
        // The stage before has come by now, or soon.
        if (block > 0) {
            wait_copies<1>();
            publish_operands();
            shared.full[place == 0 ? GROUP_STAGES - 1 : place - 1].arrive();
        }
        if (++place == GROUP_STAGES) {
            place = 0;
            ++round;
        }
    }
    wait_copies<0>();
    publish_operands();
    shared.full[place == 0 ? GROUP_STAGES - 1 : place - 1].arrive();
}
