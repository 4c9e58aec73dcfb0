// A warp's stream of weights through shared memory, and the arithmetic of tile.cuh for one column of activations.
//
// Each warp multiplies one slice of the contraction, tile after tile. Its weights pass through a ring of its own: as soon
// as a chunk is used, its place takes the chunk DEPTH further, at the end of a tile the first of the next. So what is under
// way does not cost registers, kernels are small enough for the next one's CTAs to be resident beside this one's, and those
// fill their rings before this kernel has ended.
//
// One column: the tensor cores' operand B holds the high bytes in even columns and the low bytes in odd ones, so that one
// instruction makes both sums. Each lane of a quad keeps one of the quad's four rows: lane 4g + t has row g + 8t, whose
// scales lie at the lane's own place.
#pragma once
#include "common/tile.cuh"

// How a format's blocks are cut into chunks.
template <int FORMAT>
struct Chunk {
    using S = Strides<FORMAT>;
    using C = Codec<FORMAT>;
    static constexpr u32 BLOCKS = FORMAT == FORMAT_Q8_0 ? 2 : 4;
    // Chunks that share a scale unit; its scales come with the first.
    static constexpr u32 PER_UNIT = C::SUPER ? C::BLOCKS / BLOCKS : 1;
    static constexpr u32 UNITS = C::SUPER ? 1 : BLOCKS;
    static constexpr bool HAS_HIGH = FORMAT == FORMAT_Q5_0 || FORMAT == FORMAT_Q5_1 || FORMAT == FORMAT_Q5_K ||
                                     FORMAT == FORMAT_Q3_K || FORMAT == FORMAT_Q6_K;
    static constexpr bool HAS_SUPERS = FORMAT == FORMAT_Q2_K || FORMAT == FORMAT_Q6_K;
    // Places of the planes' parts in a chunk.
    static constexpr u32 HIGH = BLOCKS * S::CODES;
    static constexpr u32 SCALES = HIGH + (HAS_HIGH ? BLOCKS * S::HIGH : 0);
    static constexpr u32 SUPERS = SCALES + UNITS * S::SCALES;
    static constexpr u32 BYTES = SUPERS + (HAS_SUPERS ? UNITS * S::SUPERS : 0);
    // As many as 7700 bytes hold: `ring_bytes` in single.rs.
    static constexpr u32 DEPTH = 7700 / BYTES;
    static constexpr u32 RING = DEPTH * BYTES;
};

// Where a lane copies from: 16 bytes of each 512 of every plane.
template <int FORMAT>
struct CopyPlanes {
    const u8* codes;
    const u8* high;
    const u8* scales;
    const u8* supers;
    CachePolicy policy;

    __device__ __forceinline__ CopyPlanes(const Weight& weight, u64 row_tile, u32 unit, u32 lane) {
        const LanePlanes<FORMAT> at(weight, row_tile, unit, 0);
        policy = read_once();
        codes = at.codes + lane * 16;
        high = at.high + lane * 16;
        scales = at.scales + lane * 16;
        supers = at.supers + lane * 16;
    }

    // To the next chunk; `ends_unit`: the scales go on too.
    __device__ __forceinline__ void advance(bool ends_unit) {
        using S = Strides<FORMAT>;
        using K = Chunk<FORMAT>;
        codes += K::BLOCKS * S::CODES;
        if constexpr (K::HAS_HIGH) high += K::BLOCKS * S::HIGH;
        if (!ends_unit) return;
        scales += K::UNITS * S::SCALES;
        if constexpr (K::HAS_SUPERS) supers += K::UNITS * S::SUPERS;
    }
};

// Copies the first `bytes` of `BYTES`; a warp, 16 bytes a lane at a time. `AT`: place in the chunk. Bytes beyond stay what they
// were.
template <u32 AT, u32 BYTES, u32 FIRST = 0>
__device__ __forceinline__ void copy_part(SharedAddress slot, const u8* from, u32 bytes, u32 lane,
                                          CachePolicy policy) {
    if (lane * 16 + FIRST < bytes) copy_async_at<AT + FIRST, FIRST>(slot, from, policy);
    if constexpr (FIRST + 512 < BYTES) copy_part<AT, BYTES, FIRST + 512>(slot, from, bytes, lane, policy);
}

// Starts the copy of the chunk at `at`, of which `live` blocks exist, to `slot` (of this lane). `begins_unit`: with scales.
template <int FORMAT>
__device__ __forceinline__ void copy_chunk(SharedAddress slot, const CopyPlanes<FORMAT>& at, u32 live, bool begins_unit,
                                           u32 lane) {
    using S = Strides<FORMAT>;
    using K = Chunk<FORMAT>;
    copy_part<0, K::HIGH>(slot, at.codes, live * S::CODES, lane, at.policy);
    if constexpr (K::HAS_HIGH) copy_part<K::HIGH, K::BLOCKS * S::HIGH>(slot, at.high, live * S::HIGH, lane, at.policy);
    if (!begins_unit) return;
    const u32 units = K::C::SUPER ? 1 : live;
    copy_part<K::SCALES, K::UNITS * S::SCALES>(slot, at.scales, units * S::SCALES, lane, at.policy);
    if constexpr (K::HAS_SUPERS) copy_part<K::SUPERS, K::UNITS * S::SUPERS>(slot, at.supers, units * S::SUPERS, lane, at.policy);
}

// A lane's codes of block `b` of a chunk.
template <int FORMAT>
__device__ __forceinline__ TileCodes chunk_codes(const u8* slot, u32 b, u32 lane) {
    using S = Strides<FORMAT>;
    using K = Chunk<FORMAT>;
    TileCodes raw;
    const u8* codes = slot + b * S::CODES;
    if constexpr (FORMAT == FORMAT_Q8_0) {
        raw.codes[0] = ((const Words4*)codes)[lane];
        raw.codes[1] = ((const Words4*)(codes + 512))[lane];
    } else if constexpr (S::CODES == 256) {
        raw.pairs = ((const Words2*)codes)[lane];
    } else {
        raw.codes[0] = ((const Words4*)codes)[lane];
    }
    const u8* high = slot + K::HIGH + b * S::HIGH;
    if constexpr (FORMAT == FORMAT_Q6_K) {
        raw.pairs = ((const Words2*)high)[lane];
    } else if constexpr (K::HAS_HIGH) {
        raw.high = ((const u32*)high)[lane];
    }
    return raw;
}

// The sub-scales of the lane's row, of a super-block.
template <int FORMAT>
__device__ __forceinline__ UnitScales chunk_unit(const u8* slot, u32 lane) {
    using K = Chunk<FORMAT>;
    ScaleRecord record;
    record.row = ((const Words4*)(slot + K::SCALES))[lane];
    record.super = 0;
    if constexpr (FORMAT == FORMAT_Q2_K) record.super = ((const u32*)(slot + K::SUPERS))[lane];
    if constexpr (FORMAT == FORMAT_Q6_K) record.super = ((const u16*)(slot + K::SUPERS))[lane];
    return unpack<FORMAT>(record);
}

// Scales of the lane's row in block `b` of a chunk of a format without super-blocks.
template <int FORMAT>
__device__ __forceinline__ RowScale chunk_scale(const u8* slot, u32 b, u32 lane) {
    using S = Strides<FORMAT>;
    const u8* scales = slot + Chunk<FORMAT>::SCALES + b * S::SCALES;
    if constexpr (FORMAT == FORMAT_MXFP4) return {__uint_as_float((u32)scales[lane] << 23), 0.0f};
    if constexpr (S::SCALES == 128) {
        const u32 pair = ((const u32*)scales)[lane];
        return {low_half(pair), high_half(pair)};
    }
    return {half_to_float(((const u16*)scales)[lane]), 0.0f};
}

// Integer sums of the lane's row from the two row halves of a tile: `c[m]` = high and low of row g + 16m, then of g + 16m + 8.
__device__ __forceinline__ i32 own_row(const i32 (&c)[2][4], u32 lane) {
    i32 sums[2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
        const i32 high = lane & 1 ? c[m][2] : c[m][0];
        const i32 low = lane & 1 ? c[m][3] : c[m][1];
        sums[m] = (i32)((u32)high << 8) + low;
    }
    return lane & 2 ? sums[1] : sums[0];
}

// The halves of MXFP4's two tables that instructions cannot hold (`mxfp4_bytes`). They pass through a shuffle, so that the
// assembler keeps them in registers instead of making them anew for each use.
struct ByteTables {
    u32 plain;
    u32 flipped;

    __device__ __forceinline__ ByteTables() {
        plain = __shfl_sync(0xffffffffu, 0xc3c2c1c0u, 0);
        flipped = __shfl_sync(0xffffffffu, 0xbdbebfc0u, 0);
    }
};

// As `fragments`, of row half M.
template <int FORMAT, int M>
__device__ __forceinline__ void fragments_by(const ByteTables& tables, const TileCodes& raw, u32 (&a)[4]) {
    if constexpr (FORMAT == FORMAT_MXFP4) {
        const u32 words[2] = {M == 0 ? raw.codes[0].x : raw.codes[0].z, M == 0 ? raw.codes[0].y : raw.codes[0].w};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const u32 other = words[i] ^ 0x88888888u;
            a[i] = permute_bytes(tables.plain, 0xccc8c6c4u, words[i]) & permute_bytes(tables.flipped, 0xb4b8babcu, other);
            a[2 + i] = permute_bytes(tables.plain, 0xccc8c6c4u, words[i] >> 16) &
                       permute_bytes(tables.flipped, 0xb4b8babcu, other >> 16);
        }
    } else {
        fragments<FORMAT, M>(raw, a);
    }
}

// Adds a block to the lane's row, `acc`. `x`: the lane's codes, first and second half; `scale_of(part)`.
template <int FORMAT, class ScaleOf>
__device__ __forceinline__ float add_single(const ByteTables& tables, const TileCodes& raw, const Words2& x,
                                            const ActivationSums& sums, u32 lane, const ScaleOf& scale_of, float acc) {
    using C = Codec<FORMAT>;
    u32 upper[4], lower[4];
    fragments_by<FORMAT, 0>(tables, raw, upper);
    fragments_by<FORMAT, 1>(tables, raw, lower);
#pragma unroll
    for (int part = 0; part < BlockScales<FORMAT>::PARTS; ++part) {
        i32 c[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        if constexpr (C::HALVES) {
            mma_s8_k16(c[0], upper[2 * part], upper[2 * part + 1], part == 0 ? x.x : x.y);
            mma_s8_k16(c[1], lower[2 * part], lower[2 * part + 1], part == 0 ? x.x : x.y);
        } else {
            mma_s8_k32(c[0], upper[0], upper[1], upper[2], upper[3], x.x, x.y);
            mma_s8_k32(c[1], lower[0], lower[1], lower[2], lower[3], x.x, x.y);
        }
        const RowScale scale = scale_of(part);
        const i32 sum_of_codes = own_row(c, lane) + (C::BIASED ? sums.bias : 0);
        acc = add_scaled<FORMAT>(scale.code, sums.scale, (float)sum_of_codes, acc);
        if constexpr (C::MINIMUM) {
            const float sum = C::HALVES ? (part == 0 ? sums.low_half : sums.high_half) : sums.low_half + sums.high_half;
            acc = fmaf(scale.least, sum, acc);
        }
    }
    return acc;
}

// What a warp needs to multiply chunk after chunk.
template <int FORMAT>
struct StreamRow {
    const u8* codes;             // records of the slice: this lane's halves of the first block
    const ActivationSums* sums;  // of the first block
    ByteTables tables;
    UnitScales unit;
    float acc;

    // Adds the first `live` blocks of the chunk in `slot`, which begins at block `first` of the slice. Places beyond hold
    // anything, and change nothing.
    __device__ __forceinline__ void add(const u8* slot, u32 first, u32 live, u32 lane) {
        using K = Chunk<FORMAT>;
        if (K::C::SUPER && first % K::C::BLOCKS == 0) unit = chunk_unit<FORMAT>(slot, lane);
#pragma unroll
        for (u32 b = 0; b < K::BLOCKS; ++b) {
            const Words2 x = *(const Words2*)(codes + (first + b) * ACTIVATION_CODE_BYTES);
            const float sum = add_single<FORMAT>(
                tables, chunk_codes<FORMAT>(slot, b, lane), x, sums[first + b], lane,
                [&](int part) {
                    if constexpr (Codec<FORMAT>::SUPER) return super_scale<FORMAT>(unit, first % 8 + b, part);
                    return chunk_scale<FORMAT>(slot, b, lane);
                },
                acc);
            // Slices of super-blocks are whole chunks.
            if (K::C::SUPER || b < live) acc = sum;
        }
    }
};
