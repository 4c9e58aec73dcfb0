// The warpgroup shape of a product kernel (9.0a): many columns against many rows, for prefill.
//
// A CTA takes 192 rows and 128 columns: twelve warps, three warpgroups, 16 rows a warp. Activations stream through shared
// memory in the order of the tensor cores; every warp takes its rows' codes apart in registers, and one warpgroup's products
// run while the others scale their sums. Sums over finished slices wait in shared memory.
// Bound by the copies of activations today, then by the scaling: four instructions per output and block of 32.
//
// The numbers, and the order they are added in, are tile.cuh's.
#pragma once
#include "common/gated.cuh"
#include "common/product.cuh"
#include "common/quantize.cuh"
#include "common/warpgroup.cuh"

#define GROUP_THREADS 384
#define GROUP_TILES 6
#define GROUP_COLUMNS 128
// Columns of one piece, and pieces.
#define PIECE_COLUMNS 32
#define PIECES (GROUP_COLUMNS / PIECE_COLUMNS)
// Blocks copied per stage, stages, and how many stages ahead copies begin.
#define GROUP_BLOCKS 2
#define GROUP_STAGES 4
#define GROUP_AHEAD 2
static_assert(GROUP_AHEAD * GROUP_BLOCKS < 8, "the record of a super-block is taken out before the next one comes");

// [eight columns][high, low][half of the block][column][element]
typedef u8 GroupCodes[GROUP_COLUMNS / 8][2][2][8][16];

// Of a block's weights, bytes a lane copies for itself: codes, high bits, and per quad of lanes the scales of its rows.
template <int FORMAT>
struct LaneBytes {
    using S = Strides<FORMAT>;
    static constexpr int CODES = FORMAT == FORMAT_Q8_0 ? 16 : S::CODES == 256 ? 4 : 8;
    static constexpr int HIGH = FORMAT == FORMAT_Q5_0 || FORMAT == FORMAT_Q5_1 || FORMAT == FORMAT_Q5_K ||
                                        FORMAT == FORMAT_Q3_K || FORMAT == FORMAT_Q6_K
                                    ? 4
                                    : 0;
    static constexpr int SCALES = Codec<FORMAT>::SUPER ? 0 : S::SCALES == 128 ? 8 : 4;
    // Of a super-block: sub-scales, and super-scales where those have no room for them.
    static constexpr int RECORD = Codec<FORMAT>::SUPER ? 16 : 0;
    static constexpr int SUPERS = FORMAT == FORMAT_Q2_K ? 4 : FORMAT == FORMAT_Q6_K ? 2 : 0;
};

// What a stage holds of the activations: scales alone, or all sums for formats with a minimum.
template <bool MINIMUM>
struct GroupSums {
    float scales[GROUP_BLOCKS][GROUP_COLUMNS];
};
template <>
struct GroupSums<true> {
    ActivationSums sums[GROUP_BLOCKS][GROUP_COLUMNS];
};

template <int FORMAT>
struct GroupStage : GroupSums<Codec<FORMAT>::MINIMUM> {
    using L = LaneBytes<FORMAT>;
    GroupCodes codes[GROUP_BLOCKS];
    alignas(16) u8 weight_codes[GROUP_BLOCKS][GROUP_THREADS][L::CODES];
    alignas(16) u8 weight_high[GROUP_BLOCKS][L::HIGH ? GROUP_THREADS : 1][L::HIGH ? L::HIGH : 8];
    alignas(16) u8 weight_scales[GROUP_BLOCKS][L::SCALES ? GROUP_THREADS / 4 : 1][L::SCALES ? L::SCALES : 8];
};

struct alignas(16) FourSums {
    float at[4];
};

template <int FORMAT>
struct GroupShared {
    using L = LaneBytes<FORMAT>;
    GroupStage<FORMAT> stages[GROUP_STAGES];
    // Of the super-block that begins next; a lane takes its own out as it begins.
    alignas(16) u8 records[L::RECORD ? GROUP_THREADS : 1][16];
    alignas(16) u8 supers[L::SUPERS ? GROUP_THREADS : 4][L::SUPERS ? L::SUPERS : 4];
    FourSums totals[PIECES * 4][GROUP_THREADS];  // each thread's own
    PhaseBarrier full[GROUP_STAGES];   // everybody's copies have ended
    PhaseBarrier empty[GROUP_STAGES];  // every warp has left
    u32 rows[GROUP_COLUMNS];   // activation row of each column; dead columns name some row that exists
    u32 pairs[GROUP_COLUMNS];  // of experts' products
};

static_assert(sizeof(GroupShared<WEIGHT_FORMAT>) == GROUP_SHARED_BYTES, "host and device disagree on the shared memory");

// A lane's place in the planes of half `m` of a row tile: rows g + 16m and g + 16m + 8.
template <int FORMAT>
struct HalfPlanes {
    using S = Strides<FORMAT>;
    LanePlanes<FORMAT> at;
    u32 m;

    __device__ __forceinline__ HalfPlanes(const Weight& weight, u64 row_tile, u32 half, u32 lane)
        : at(weight, row_tile, 0, lane), m(half) {
        at.codes += m * (S::CODES / 2 / (FORMAT == FORMAT_Q8_0 ? 1 : 32));
        if (FORMAT == FORMAT_Q6_K) at.high += 4 * m;
        // MXFP4 has the scales of both halves in one word.
        if (!Codec<FORMAT>::SUPER && FORMAT != FORMAT_MXFP4) at.scales += m * (S::SCALES / 16);
    }
};

// Starts the copies of this lane's weights of a block.
template <int FORMAT>
__device__ __forceinline__ void copy_half(const HalfPlanes<FORMAT>& half, GroupStage<FORMAT>& stage, u32 b, u32 block) {
    using S = Strides<FORMAT>;
    using L = LaneBytes<FORMAT>;
    copy_bytes_async<L::CODES>(stage.weight_codes[b][threadIdx.x], half.at.codes + block * S::CODES);
    if constexpr (L::HIGH > 0) copy_bytes_async<4>(stage.weight_high[b][threadIdx.x], half.at.high + block * S::HIGH);
    if constexpr (L::SCALES > 0) {
        if (threadIdx.x % 4 == 0) {
            copy_bytes_async<L::SCALES>(stage.weight_scales[b][threadIdx.x / 4], half.at.scales + block * S::SCALES);
        }
    }
}

// Starts the copies of this lane's record of a super-block.
template <int FORMAT>
__device__ __forceinline__ void copy_record(const HalfPlanes<FORMAT>& half, GroupShared<FORMAT>& shared, u32 unit) {
    using S = Strides<FORMAT>;
    using L = LaneBytes<FORMAT>;
    copy_bytes_async<16>(shared.records[threadIdx.x], half.at.scales + unit * S::SCALES);
    if constexpr (L::SUPERS == 4) copy_bytes_async<4>(shared.supers[threadIdx.x], half.at.supers + unit * S::SUPERS);
    if constexpr (L::SUPERS == 2) {
        // Two lanes' at once.
        if (threadIdx.x % 2 == 0) copy_bytes_async<4>(shared.supers[threadIdx.x], half.at.supers + unit * S::SUPERS);
    }
}

template <int FORMAT>
__device__ __forceinline__ ScaleRecord load_copied_record(const GroupShared<FORMAT>& shared) {
    using L = LaneBytes<FORMAT>;
    ScaleRecord record;
    record.row = *(const Words4*)shared.records[threadIdx.x];
    if constexpr (L::SUPERS == 4) record.super = *(const u32*)shared.supers[threadIdx.x];
    if constexpr (L::SUPERS == 2) record.super = *(const u16*)shared.supers[threadIdx.x];
    return record;
}

// The codes of a block; as a whole tile's, whose first half they take the place of.
template <int FORMAT>
__device__ __forceinline__ TileCodes load_half(const GroupStage<FORMAT>& stage, u32 b) {
    using L = LaneBytes<FORMAT>;
    TileCodes raw;
    const u8* codes = stage.weight_codes[b][threadIdx.x];
    if constexpr (L::CODES == 16) {
        raw.codes[0] = *(const Words4*)codes;
    } else if constexpr (L::CODES == 4) {
        raw.pairs.x = *(const u32*)codes;
    } else {
        const Words2 words = *(const Words2*)codes;
        raw.codes[0].x = words.x;
        raw.codes[0].y = words.y;
    }
    if constexpr (L::HIGH > 0) {
        const u32 high = *(const u32*)stage.weight_high[b][threadIdx.x];
        if constexpr (FORMAT == FORMAT_Q6_K) {
            raw.pairs.x = high;
        } else {
            raw.high = high;
        }
    }
    return raw;
}

// Scales of the lane's two rows, where they are not super-blocks'.
template <int FORMAT>
__device__ __forceinline__ ScaleRecord load_half_scales(const GroupStage<FORMAT>& stage, u32 b, u32 m) {
    using L = LaneBytes<FORMAT>;
    ScaleRecord record;
    const u8* scales = stage.weight_scales[b][threadIdx.x / 4];
    if constexpr (L::SCALES == 8) {
        const Words2 words = *(const Words2*)scales;
        record.row.x = words.x;
        record.row.y = words.y;
    } else {
        record.row.x = *(const u32*)scales;
        if (FORMAT == FORMAT_MXFP4) record.row.x >>= 16 * m;
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

// This thread's part of every stage's copies. Eight warps copy codes, eight columns each and those 64 further; the four
// others a column's scale each.
template <int FORMAT>
struct GroupCopies {
    const u8* first;
    const u8* second;
    u32 blocks;

    __device__ __forceinline__ GroupCopies(const Activations& x, const u32* rows, u32 blocks) : blocks(blocks) {
        const u32 lane = threadIdx.x % 32;
        const u32 warp = threadIdx.x / 32;
        if (warp < 8) {
            const u32 column = 8 * warp + lane % 8;
            first = x.codes + (u64)rows[column] * blocks * ACTIVATION_CODE_BYTES + lane / 8 * 16;
            second = x.codes + (u64)rows[column + 64] * blocks * ACTIVATION_CODE_BYTES + lane / 8 * 16;
        } else {
            first = second = (const u8*)(x.sums + (u64)rows[threadIdx.x - 256] * blocks);
        }
    }

    // Starts the copies of the blocks from `block` on; there may be fewer than a stage has, or none.
    __device__ __forceinline__ void start(GroupStage<FORMAT>& stage, u32 block) const {
        const u32 lane = threadIdx.x % 32;
        const u32 warp = threadIdx.x / 32;
#pragma unroll
        for (u32 b = 0; b < GROUP_BLOCKS; ++b) {
            if (block + b >= blocks) break;
            if (warp < 8) {
                u8* target = stage.codes[b][warp][lane / 16][lane / 8 % 2][lane % 8];
                copy_async(target, first + (block + b) * ACTIVATION_CODE_BYTES, true);
                copy_async(target + 8 * OPERAND_STRIDE, second + (block + b) * ACTIVATION_CODE_BYTES, true);
            } else if constexpr (Codec<FORMAT>::MINIMUM) {
                copy_async(&stage.sums[b][threadIdx.x - 256], first + (block + b) * sizeof(ActivationSums), true);
            } else {
                copy_bytes_async<4>(&stage.scales[b][threadIdx.x - 256], first + (block + b) * sizeof(ActivationSums));
            }
        }
    }
};

// sums = A B of part `part` of the block at `codes`, an operand: the high bytes' sums are shifted up and the low bytes' added
// to them by the tensor cores.
template <int FORMAT, int N>
__device__ __forceinline__ void multiply(const u32 (&a)[4], u32 codes, int part, i32 (&sums)[N]) {
    const bool first = !Codec<FORMAT>::HALVES || part == 0;
    const bool second = !Codec<FORMAT>::HALVES || part == 1;
    const u32 a0 = first ? a[0] : 0, a1 = first ? a[1] : 0, a2 = second ? a[2] : 0, a3 = second ? a[3] : 0;
    products_begin();
    products_add<false>(sums, a0, a1, a2, a3, codes);
    products_commit();
    products_wait(sums);
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] = (i32)((u32)sums[i] << 8);
    products_begin();
    products_add<true>(sums, a0, a1, a2, a3, codes + OPERAND_STRIDE / 2 / 16);
    products_commit();
    products_wait(sums);
}

// Adds a block's sums to `acc`.
template <int FORMAT, int N>
__device__ __forceinline__ void add_sums(const i32 (&sums)[N], const HalfScales<FORMAT>& scales, int part,
                                         const GroupStage<FORMAT>& stage, u32 b, float (&acc)[N]) {
    using C = Codec<FORMAT>;
#pragma unroll
    for (int n = 0; n < N / 4; ++n) {
        const u32 column = 8 * n + 2 * (threadIdx.x % 4);
        float scale[2], least[2];
        if constexpr (C::MINIMUM) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const ActivationSums own = stage.sums[b][column + i];
                scale[i] = own.scale;
                least[i] = C::HALVES ? (part == 0 ? own.low_half : own.high_half) : own.low_half + own.high_half;
            }
        } else {
            const float2 both = *(const float2*)&stage.scales[b][column];
            scale[0] = both.x;
            scale[1] = both.y;
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            float& own = acc[4 * n + c];
            own = fmaf(scales.code[part][c / 2], scale[c % 2] * (float)sums[4 * n + c], own);
            if constexpr (C::MINIMUM) own = fmaf(scales.least[part][c / 2], least[c % 2], own);
        }
    }
}

// The sums of this warp's 16 rows of row tile `tile` with the columns of `shared.rows`, LIVE pieces of them, in this thread's
// `shared.totals`; [4p + n]: columns 32p + 8n on, as mma has them. `shared.rows` must be filled and visible. `active`: the
// warpgroup has something to do. All threads call it; what the stages held is overwritten only after a barrier.
template <int FORMAT, int LIVE>
__device__ __forceinline__ void group_pieces(const Weight& weight, u64 tile, bool active, const Activations& x,
                                             GroupShared<FORMAT>& shared) {
    using C = Codec<FORMAT>;
    constexpr int PARTS = HalfScales<FORMAT>::PARTS;
    const u32 lane = threadIdx.x % 32;
    const u32 m = threadIdx.x / 32 % 2;
    const u32 blocks = weight.blocks;
    const u32 units = blocks / C::BLOCKS;
    const HalfPlanes<FORMAT> at(weight, tile, m, lane);
    constexpr int N = 16 * LIVE;
    float acc[N];
#pragma unroll
    for (int i = 0; i < N; ++i) acc[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < N / 4; ++i) shared.totals[i][threadIdx.x] = {{0.0f, 0.0f, 0.0f, 0.0f}};
    u32 slice = 0;
    u32 slice_end = slice_begin(1, units);
    const auto end_slices = [&](u32 unit) {
        // Empty slices add zero, as in the split shape.
        while (slice < SLICES && unit == slice_end) {
#pragma unroll
            for (int i = 0; i < N / 4; ++i) {
                FourSums total = shared.totals[i][threadIdx.x];
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    total.at[c] += acc[4 * i + c];
                    acc[4 * i + c] = 0.0f;
                }
                shared.totals[i][threadIdx.x] = total;
            }
            ++slice;
            slice_end = slice_begin(slice + 1, units);
        }
    };
    UnitScales unit;
    end_slices(0);
    const u32 stages = (blocks + GROUP_BLOCKS - 1) / GROUP_BLOCKS;
    const GroupCopies<FORMAT> copies(x, shared.rows, blocks);
    const auto fill = [&](u32 index) {
        const u32 place = index % GROUP_STAGES;
        copies.start(shared.stages[place], index * GROUP_BLOCKS);
#pragma unroll
        for (u32 b = 0; b < GROUP_BLOCKS; ++b) {
            const u32 block = index * GROUP_BLOCKS + b;
            if (!active || block >= blocks) break;
            copy_half<FORMAT>(at, shared.stages[place], b, block);
            if constexpr (C::SUPER) {
                if (block % 8 == 0) copy_record<FORMAT>(at, shared, block / 8);
            }
        }
        shared.full[place].arrive_copied();
    };
#pragma unroll 1
    for (u32 i = 0; i < GROUP_AHEAD && i < stages; ++i) fill(i);
    // Blocks are not unrolled, so that the loop stays in the instruction cache next to the scheduler. Warps go through the
    // stages on their own: a stage is filled when everybody's copies have ended, and free when every warp has left it.
#pragma unroll 1
    for (u32 block = 0; block < blocks; ++block) {
        const u32 b = block % GROUP_BLOCKS;
        const u32 index = block / GROUP_BLOCKS;
        const u32 place = index % GROUP_STAGES;
        if (b == 0) {
            const u32 ahead = index + GROUP_AHEAD;
            if (ahead < stages) {
                if (ahead >= GROUP_STAGES) shared.empty[ahead % GROUP_STAGES].wait((ahead / GROUP_STAGES - 1) % 2);
                fill(ahead);
            }
            shared.full[place].wait(index / GROUP_STAGES % 2);
            publish_operands();
        }
        if (active) {
            const GroupStage<FORMAT>& stage = shared.stages[place];
            u32 a[4];
            half_fragments<FORMAT>(load_half<FORMAT>(stage, b), m, a);
            if constexpr (C::SUPER) {
                if (block % 8 == 0) unit = unpack<FORMAT>(load_copied_record<FORMAT>(shared));
            } else {
                unit = unpack<FORMAT>(load_half_scales<FORMAT>(stage, b, m));
            }
            const HalfScales<FORMAT> scales = half_scales<FORMAT>(unit, block % C::BLOCKS, m);
            const u32 codes = shared_operand(stage.codes[b]);
            i32 sums[N];
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                multiply<FORMAT>(a, codes, part, sums);
                add_sums<FORMAT>(sums, scales, part, stage, b, acc);
            }
            if ((block + 1) % C::BLOCKS == 0) end_slices((block + 1) / C::BLOCKS);
        }
        if (b + 1 == GROUP_BLOCKS || block + 1 == blocks) {
            __syncwarp();
            if (lane == 0) shared.empty[place].arrive();
        }
    }
}

// The same for `live` columns that hold something: code of its own for each number of pieces, because registers and products
// have their sizes at compile time. Begins and ends with a barrier.
template <int FORMAT>
__device__ __forceinline__ void group_sums(const Weight& weight, u64 tile, bool active, const Activations& x, u32 live,
                                           GroupShared<FORMAT>& shared) {
    if (threadIdx.x < GROUP_STAGES) {
        shared.full[threadIdx.x].open(GROUP_THREADS);
        shared.empty[threadIdx.x].open(GROUP_THREADS / 32);
    }
    __syncthreads();
    if (live > 3 * PIECE_COLUMNS) {
        group_pieces<FORMAT, 4>(weight, tile, active, x, shared);
    } else if (live > 2 * PIECE_COLUMNS) {
        group_pieces<FORMAT, 3>(weight, tile, active, x, shared);
    } else if (live > PIECE_COLUMNS) {
        group_pieces<FORMAT, 2>(weight, tile, active, x, shared);
    } else {
        group_pieces<FORMAT, 1>(weight, tile, active, x, shared);
    }
    __syncthreads();
    if (threadIdx.x < GROUP_STAGES) {
        shared.full[threadIdx.x].close();
        shared.empty[threadIdx.x].close();
    }
}

// The product of up to 6 row tiles from `first_tile` on, of which there are `row_tiles`, with `live` columns.
// `store(row from the first tile's on, column, sum)` is called once for each of the sums, column < live. Ends with a barrier.
template <int FORMAT, class Store>
__device__ __forceinline__ void group_product(const Weight& weight, u64 first_tile, u32 row_tiles, const Activations& x, u32 live,
                                              GroupShared<FORMAT>& shared, const Store& store) {
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    // The tensor cores want a warpgroup whole: a warp without a tile works on another's, for nothing.
    const bool active = warp / 4 * 2 < row_tiles;
    const u32 tile = warp / 2 < row_tiles ? warp / 2 : 0;
    group_sums<FORMAT>(weight, first_tile + tile, active, x, live, shared);
    if (warp / 2 < row_tiles) {
        const u32 row = 32 * tile + 16 * (warp % 2) + lane / 4;
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
    __syncthreads();
}

// What `gated_product` works on: two weights of one shape and the gated activation between them.
struct GatedProduct {
    Weight gate;
    Weight up;
    const float* gate_bias;  // [experts, outputs] or null
    const float* up_bias;
    u8* codes;  // records, high and low bytes apart
    ActivationSums* sums;
    u32 kind;
    float alpha;
    float limit;
    u32 reserved;
};

// swiglu of two products of up to 3 row tiles, as activation records: a row tile is a block. `tile`: the first of them, of
// which there are `row_tiles`; `expert_tile`: where the expert's begin; `record_of(column)`: row of the records of a column.
// Warps 0 to 5 multiply with the gate, 6 to 11 with the other weight; then each thread makes one record. Ends with a barrier.
template <int FORMAT, class RecordOf>
__device__ __forceinline__ void gated_product(const GatedProduct& product, u64 expert_tile, u32 tile, u32 row_tiles,
                                              const Activations& x, u32 live, GroupShared<FORMAT>& shared,
                                              const RecordOf& record_of) {
    constexpr u32 HALF = GROUP_TILES / 2;
    const u32 warp = threadIdx.x / 32;
    const u32 own = warp / 2 % HALF < row_tiles ? warp / 2 % HALF : 0;
    group_sums<FORMAT>(warp < 2 * HALF ? product.gate : product.up, expert_tile + tile + own, true, x, live, shared);
    const u32 column = threadIdx.x % GROUP_COLUMNS;
    const u32 block = threadIdx.x / GROUP_COLUMNS;
    if (column < live && block < row_tiles) {
        float y[32];
#pragma unroll 8
        for (u32 row = 0; row < 32; ++row) {
            const u32 thread = (2 * block + row / 16) * 32 + row % 8 * 4 + column % 8 / 2;
            const u32 c = row / 8 % 2 * 2 + column % 2;
            float gate = shared.totals[column / 8][thread].at[c] * Codec<FORMAT>::POST;
            float up = shared.totals[column / 8][thread + 64 * HALF].at[c] * Codec<FORMAT>::POST;
            const u64 output = (expert_tile + tile + block) * 32 + row;
            if (product.gate_bias) gate += product.gate_bias[output];
            if (product.up_bias) up += product.up_bias[output];
            y[row] = gated(product.kind, product.alpha, product.limit, gate, up);
        }
        const u64 record = (u64)record_of(column) * product.gate.row_tiles + tile + block;
        quantize_alone(y, product.codes + record * ACTIVATION_CODE_BYTES, product.sums + record);
    }
    __syncthreads();
}
