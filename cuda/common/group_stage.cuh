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
// Places for blocks; they are filled, and left, GROUP_BLOCKS at a time: a stage.
#define GROUP_BLOCKS 2
#define GROUP_PLACES 8
#define GROUP_STAGES (GROUP_PLACES / GROUP_BLOCKS)
static_assert(GROUP_PLACES <= 8, "the record of a super-block is taken out before the next one comes");
static_assert(GROUP_PRODUCERS == GROUP_COLUMNS && GROUP_BLOCKS == 2, "who copies what");

// Of a stage's two blocks: [column][sixteen bytes, swizzled][byte], as the tensor cores take it.
typedef u8 GroupCodes[GROUP_COLUMNS][8][16];

// What shared memory begins with has places for these.
struct alignas(1024) GroupMemory {
    u8 bytes[1024];
};

// Bytes of a row tile's planes in a block, and of a super-block's record; 16 where the format has none.
template <int FORMAT>
struct TileBytes {
    using S = Strides<FORMAT>;
    static constexpr bool HAS_HIGH = FORMAT == FORMAT_Q5_0 || FORMAT == FORMAT_Q5_1 || FORMAT == FORMAT_Q5_K ||
                                     FORMAT == FORMAT_Q3_K || FORMAT == FORMAT_Q6_K;
    static constexpr bool HAS_SUPERS = FORMAT == FORMAT_Q2_K || FORMAT == FORMAT_Q6_K;
    static constexpr u32 CODES = S::CODES;
    static constexpr u32 HIGH = HAS_HIGH ? S::HIGH : 16;
    static constexpr u32 SCALES = Codec<FORMAT>::SUPER ? 16 : S::SCALES;
    static constexpr u32 RECORD = Codec<FORMAT>::SUPER ? S::SCALES : 16;
    static constexpr u32 SUPERS = HAS_SUPERS ? S::SUPERS : 16;
};

template <int FORMAT>
struct alignas(16) GroupStage {
    using B = TileBytes<FORMAT>;
    // A tile's blocks one behind the other, as they lie in memory.
    u8 weight_codes[GROUP_TILES][GROUP_BLOCKS * B::CODES];
    u8 weight_high[GROUP_TILES][GROUP_BLOCKS * B::HIGH];
    u8 weight_scales[GROUP_TILES][GROUP_BLOCKS * B::SCALES];
};

// Of one block: scales, for formats with a minimum also the sum of codes, or of either half's where halves have scales of their
// own; columns as `sums_place` has them.
template <int FORMAT>
struct GroupSums {
    using C = Codec<FORMAT>;
    static constexpr u32 COUNT = C::MINIMUM ? (C::HALVES ? 3 : 2) : 1;
    // For blocks: those in use may be as old as the oldest place for blocks.
    static constexpr u32 PLACES = COUNT == 3 ? 12 : 16;
    alignas(16) float at[COUNT][GROUP_COLUMNS];
};

// Where the sums of a column lie: a lane's four of sixteen columns side by side.
__device__ __forceinline__ u32 sums_place(u32 column) {
    return column / 16 * 16 + column % 8 / 2 * 4 + column / 8 % 2 * 2 + column % 2;
}

struct alignas(16) FourSums {
    float at[4];
};

// What a warp multiplies a super-block's blocks with: of rows g and g + 8 of its half tile the factors of the codes, then what is
// added for the activations, of both halves of a block where these have scales of their own. Other formats have no such thing.
template <int FORMAT>
struct WarpScales {
    using C = Codec<FORMAT>;
    static constexpr u32 COUNT = (C::HALVES ? 2 : 1) * (C::MINIMUM ? 2 : 1);
    struct alignas(16) Rows {
        float at[COUNT][2];
    };
    Rows rows[C::SUPER ? 8 : 1][C::SUPER ? 8 : 1];  // [block][g]
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
    GroupCodes codes[GROUP_STAGES];  // of activations
    GroupStage<FORMAT> stages[GROUP_STAGES];
    GroupSums<FORMAT> sums[GroupSums<FORMAT>::PLACES];
    WarpScales<FORMAT> scales[GROUP_CONSUMERS / 32];
    // Of the super-block that begins next; warps take their own apart as it begins.
    alignas(16) u8 records[GROUP_TILES][B::RECORD];
    alignas(16) u8 supers[GROUP_TILES][B::SUPERS];
    // Each thread's own. Those of neighbouring columns are in different banks.
    FourSums totals[PIECES * 4][GROUP_CONSUMERS + 4];
    TilePlanes tiles[GROUP_TILES];
    PhaseBarrier full[GROUP_STAGES];   // every producer's copies have ended, and its stores, and copies that nobody makes
    PhaseBarrier empty[GROUP_STAGES];  // every thread that multiplies has left
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

// Starts the copies of what `count` blocks from `block` on have in each tile's plane, BYTES each: one thread of a warp for each
// tile, which has nothing more to do with it. `full` waits for them.
template <u32 BYTES>
__device__ __forceinline__ void copy_planes(u8 (&target)[GROUP_TILES][GROUP_BLOCKS * BYTES], const TilePlanes* tiles,
                                            const u8* TilePlanes::*plane, u32 block, u32 count, PhaseBarrier& full) {
    const u32 tile = threadIdx.x % 32;
    if (tile >= GROUP_TILES) return;
    full.expect(count * BYTES);
    copy_bulk(target[tile], tiles[tile].*plane + (u64)block * BYTES, count * BYTES, full);
}

// Starts this producer's share of the copies of a super-block's plane, of which there is one place.
template <u32 BYTES>
__device__ __forceinline__ void copy_records(u8 (&target)[GROUP_TILES][BYTES], const TilePlanes* tiles,
                                             const u8* TilePlanes::*plane, u32 super_block) {
    constexpr u32 PARTS = BYTES / 16;
    for (u32 index = threadIdx.x % GROUP_PRODUCERS; index < GROUP_TILES * PARTS; index += GROUP_PRODUCERS) {
        const u32 part = index % PARTS * 16;
        const u32 tile = index / PARTS;
        copy_async(&target[tile][part], tiles[tile].*plane + (u64)super_block * BYTES + part, true);
    }
}

// A producer's columns: those of each sixteen that its warp copies, four at a time; of each its lanes copy eighths.
template <int STEPS>
struct ProducerColumns {
    u32 codes[STEPS];  // where this lane's eighths begin, in units of 16 bytes
    u32 column;  // the first; the next are 16 further
    u32 eighth;

    __device__ __forceinline__ ProducerColumns(const u32* rows, u32 blocks)
        : column(threadIdx.x / 32 % 4 * 4 + threadIdx.x % 32 / 8), eighth(threadIdx.x % 8) {
#pragma unroll
        for (int i = 0; i < STEPS; ++i) codes[i] = rows[16 * i + column] * blocks * (ACTIVATION_CODE_BYTES / 16) + eighth;
    }

    // The codes of `count` blocks from `from` on: of a column up to 128 bytes in a row. They stay in a row, or the level-2 cache
    // would be asked for each sixteen of them.
    __device__ __forceinline__ void copy_codes(GroupCodes& stage, const u8* from, u32 count) const {
        if (eighth / 4 >= count) return;
        u8* to = stage[column][eighth ^ column % 8];
#pragma unroll
        for (int i = 0; i < STEPS; ++i) copy_async(to + i * 16 * OPERAND_STRIDE, from + (u64)codes[i] * 16, true);
    }
};

// A producer's column once more: it brings its sums by way of registers, for copies as small as these would keep the producers
// from all others.
template <int FORMAT>
struct ProducerSums {
    static constexpr u32 COUNT = GroupSums<FORMAT>::COUNT;
    // Blocks at a time: few where registers are.
    static constexpr u32 BLOCKS = COUNT == 1 ? 4 : 2;
    static constexpr u32 PLACES = GroupSums<FORMAT>::PLACES;
    static_assert(PLACES >= BLOCKS + GROUP_PLACES, "sums are left before others come");
    struct alignas(4 * BLOCKS) Blocks {
        float at[BLOCKS];
    };
    const float* from;  // of the blocks that come next
    u32 stride;
    Blocks next[COUNT];

    __device__ __forceinline__ ProducerSums(const Activations& x, const u32* rows, u32 blocks)
        : from((const float*)x.sums), stride(sums_stride(blocks)) {
        from += (u64)rows[threadIdx.x % GROUP_COLUMNS] * 4 * stride;
        fetch();
    }

    __device__ __forceinline__ void fetch() {
#pragma unroll
        for (u32 s = 0; s < COUNT; ++s) {
            const u32 plane = COUNT == 3 && s > 0 ? s + 1 : s;
            next[s] = *(const Blocks*)(from + plane * stride);
        }
        from += BLOCKS;
    }

    // Those of BLOCKS blocks from `block` on go to their places, the next ones are asked for.
    __device__ __forceinline__ void bring(GroupSums<FORMAT>* places, u32 block, u32 blocks) {
        const u32 column = sums_place(threadIdx.x % GROUP_COLUMNS);
#pragma unroll
        for (u32 i = 0; i < BLOCKS; ++i) {
#pragma unroll
            for (u32 s = 0; s < COUNT; ++s) places[(block + i) % PLACES].at[s][column] = next[s].at[i];
        }
        if (block + BLOCKS < blocks) fetch();
    }
};

// What the copying warpgroup does for one product of `blocks` blocks and LIVE pieces of columns: stage after stage, as places
// become free. The level-2 cache answers requests for lines, however little of them is asked for: all copies are of whole ones.
template <int FORMAT, int LIVE>
__device__ __forceinline__ void produce(u32 blocks, const Activations& x, GroupShared<FORMAT>& shared) {
    using C = Codec<FORMAT>;
    using S = Strides<FORMAT>;
    using B = TileBytes<FORMAT>;
    const ProducerColumns<2 * LIVE> columns(shared.rows, blocks);
    ProducerSums<FORMAT> sums(x, shared.rows, blocks);
    const u32 warp = threadIdx.x / 32 % 4;
    const u8* codes = x.codes;
    u32 place = 0;
    u32 parity = 1;
#pragma unroll 1
    for (u32 block = 0; block < blocks; block += GROUP_BLOCKS) {
        GroupStage<FORMAT>& stage = shared.stages[place];
        PhaseBarrier& full = shared.full[place];
        // A barrier that was never left counts as having been.
        shared.empty[place].wait(parity);
        const u32 count = blocks - block < GROUP_BLOCKS ? blocks - block : GROUP_BLOCKS;
        if (warp == 0) copy_planes<S::CODES>(stage.weight_codes, shared.tiles, &TilePlanes::codes, block, count, full);
        if constexpr (B::HAS_HIGH) {
            if (warp == 1) copy_planes<S::HIGH>(stage.weight_high, shared.tiles, &TilePlanes::high, block, count, full);
        }
        if constexpr (!C::SUPER) {
            if (warp == 2) copy_planes<S::SCALES>(stage.weight_scales, shared.tiles, &TilePlanes::scales, block, count, full);
        } else if (block % 8 == 0) {
            copy_records(shared.records, shared.tiles, &TilePlanes::scales, block / 8);
            if constexpr (B::HAS_SUPERS) copy_records(shared.supers, shared.tiles, &TilePlanes::supers, block / 8);
        }
        columns.copy_codes(shared.codes[place], codes, count);
        codes += GROUP_BLOCKS * ACTIVATION_CODE_BYTES;
        if (block % sums.BLOCKS == 0) sums.bring(shared.sums, block, blocks);
        full.arrive_behind_copies();
        full.arrive();
        if (++place == GROUP_STAGES) {
            place = 0;
            parity ^= 1;
        }
    }
}

// The same for `live` columns that hold something.
template <int FORMAT>
__device__ __forceinline__ void produce_live(u32 blocks, const Activations& x, u32 live, GroupShared<FORMAT>& shared) {
    if (live > 3 * PIECE_COLUMNS) {
        produce<FORMAT, 4>(blocks, x, shared);
    } else if (live > 2 * PIECE_COLUMNS) {
        produce<FORMAT, 3>(blocks, x, shared);
    } else if (live > PIECE_COLUMNS) {
        produce<FORMAT, 2>(blocks, x, shared);
    } else {
        produce<FORMAT, 1>(blocks, x, shared);
    }
}
