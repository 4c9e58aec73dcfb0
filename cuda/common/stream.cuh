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

// Copies `bytes` of `BYTES`, the rest becomes zero; a warp, 16 bytes a lane at a time.
template <u32 BYTES>
__device__ __forceinline__ void copy_part(u8* to, const u8* from, u32 bytes, u32 lane) {
#pragma unroll
    for (u32 first = 0; first < BYTES; first += 512) {
        const u32 at = first + lane * 16;
        if (BYTES - first >= 512 || at < BYTES) copy_async(to + at, from + at, at < bytes);
    }
}

// Starts the copy of the chunk at `at` (of lane 0), of which `live` blocks exist. `with_scales`: it begins a unit.
template <int FORMAT>
__device__ __forceinline__ void copy_chunk(u8* slot, const LanePlanes<FORMAT>& at, u32 live, bool with_scales, u32 lane) {
    using S = Strides<FORMAT>;
    using K = Chunk<FORMAT>;
    copy_part<K::HIGH>(slot, at.codes, live * S::CODES, lane);
    if constexpr (K::HAS_HIGH) copy_part<K::BLOCKS * S::HIGH>(slot + K::HIGH, at.high, live * S::HIGH, lane);
    if (!with_scales) return;
    const u32 units = K::C::SUPER ? 1 : live;
    copy_part<K::UNITS * S::SCALES>(slot + K::SCALES, at.scales, units * S::SCALES, lane);
    if constexpr (K::HAS_SUPERS) copy_part<K::UNITS * S::SUPERS>(slot + K::SUPERS, at.supers, units * S::SUPERS, lane);
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

// Adds a block to the lane's row. `x`: the lane's codes, first and second half; `scale_of(part)`.
template <int FORMAT, class ScaleOf>
__device__ __forceinline__ void add_single(const TileCodes& raw, const Words2& x, const ActivationSums& sums, u32 lane,
                                           const ScaleOf& scale_of, float& acc) {
    using C = Codec<FORMAT>;
    u32 upper[4], lower[4];
    fragments<FORMAT, 0>(raw, upper);
    fragments<FORMAT, 1>(raw, lower);
#pragma unroll
    for (int part = 0; part < BlockScales<FORMAT>::PARTS; ++part) {
        const i32 bias = C::BIASED ? sums.bias : 0;
        i32 c[2][4] = {{0, bias, 0, bias}, {0, bias, 0, bias}};
        if constexpr (C::HALVES) {
            mma_s8_k16(c[0], upper[2 * part], upper[2 * part + 1], part == 0 ? x.x : x.y);
            mma_s8_k16(c[1], lower[2 * part], lower[2 * part + 1], part == 0 ? x.x : x.y);
        } else {
            mma_s8_k32(c[0], upper[0], upper[1], upper[2], upper[3], x.x, x.y);
            mma_s8_k32(c[1], lower[0], lower[1], lower[2], lower[3], x.x, x.y);
        }
        const RowScale scale = scale_of(part);
        acc = fmaf(scale.code, sums.scale * (float)own_row(c, lane), acc);
        if constexpr (C::MINIMUM) {
            const float sum = C::HALVES ? (part == 0 ? sums.low_half : sums.high_half) : sums.low_half + sums.high_half;
            acc = fmaf(scale.least, sum, acc);
        }
    }
}

// What a warp needs to multiply chunk after chunk.
template <int FORMAT>
struct StreamRow {
    const u8* codes;             // records of the slice: this lane's halves of the first block
    const ActivationSums* sums;  // of the first block
    UnitScales unit;
    float acc;

    // Adds the `live` blocks of the chunk in `slot`, which begins at block `first` of the slice.
    __device__ __forceinline__ void add(const u8* slot, u32 first, u32 live, u32 lane) {
        using K = Chunk<FORMAT>;
        if (K::C::SUPER && first % K::C::BLOCKS == 0) unit = chunk_unit<FORMAT>(slot, lane);
        if (live == K::BLOCKS) {
#pragma unroll
            for (u32 b = 0; b < K::BLOCKS; ++b) add_block_of(slot, first, b, lane);
        } else {
#pragma unroll 1
            for (u32 b = 0; b < live; ++b) add_block_of(slot, first, b, lane);
        }
    }

    __device__ __forceinline__ void add_block_of(const u8* slot, u32 first, u32 b, u32 lane) {
        const Words2 x = *(const Words2*)(codes + (first + b) * ACTIVATION_CODE_BYTES);
        add_single<FORMAT>(
            chunk_codes<FORMAT>(slot, b, lane), x, sums[first + b], lane,
            [&](int part) {
                if constexpr (Codec<FORMAT>::SUPER) return super_scale<FORMAT>(unit, first % 8 + b, part);
                return chunk_scale<FORMAT>(slot, b, lane);
            },
            acc);
    }
};
