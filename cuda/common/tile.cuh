// A warp's product of a 32 x 32 tile of a quantised weight with activations: the one arithmetic of every product.
//
// For each block of 32 columns: I = sum of codes x activation codes, exact in 32-bit integers on the tensor cores
// (two products: high and low bytes of the activation); s = scale_x * float(I); acc = fma(d, s, acc), and for formats
// with a minimum acc = fma(m, scale_x * sum(q), acc). 16-column sub-blocks do so twice. Blocks go in ascending order
// inside a slice, slices are added in ascending order (`slice_begin`). Nothing of this depends on how many columns of
// activations there are or which column a token sits in.
#pragma once
#include "common/activation.cuh"
#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/weight.cuh"

// Contraction slices of a row. One warp takes one slice in the kernels that split the contraction.
#define SLICES 8

// First scale unit of a slice.
__device__ __forceinline__ u32 slice_begin(u32 slice, u32 units) { return (u32)((u64)slice * units / SLICES); }

template <int FORMAT>
struct Codec {
    static constexpr bool SUPER = FORMAT >= FORMAT_Q2_K && FORMAT <= FORMAT_Q6_K;
    // Blocks per scale unit.
    static constexpr u32 BLOCKS = SUPER ? 8 : 1;
    // Whether 16-column halves have scales of their own.
    static constexpr bool HALVES = FORMAT == FORMAT_Q2_K || FORMAT == FORMAT_Q3_K || FORMAT == FORMAT_Q6_K;
    static constexpr bool MINIMUM = FORMAT == FORMAT_Q4_1 || FORMAT == FORMAT_Q5_1 || FORMAT == FORMAT_Q2_K ||
                                    FORMAT == FORMAT_Q4_K || FORMAT == FORMAT_Q5_K;
    static constexpr bool BIASED = FORMAT == FORMAT_MXFP4;
    // Codes as the tensor cores see them are the format's codes times 1 / POST: applied once, at the end, exact.
    static constexpr float POST = FORMAT == FORMAT_Q4_0   ? 0.0625f
                                  : FORMAT == FORMAT_Q5_0 ? 0.125f
                                  : FORMAT == FORMAT_Q6_K ? 0.25f
                                  : FORMAT == FORMAT_Q3_K ? 0.03125f
                                  : FORMAT == FORMAT_MXFP4 ? 0.5f
                                                           : 1.0f;
};

// One lane's codes of a tile.
struct TileCodes {
    Words4 codes[2];
    Words2 pairs;
    u32 high;
};

template <int FORMAT>
__device__ __forceinline__ TileCodes load_codes(const Weight& weight, u64 tile, u32 lane) {
    TileCodes raw;
    const u8* plane = weight.base;
    if constexpr (FORMAT == FORMAT_Q8_0) {
        raw.codes[0] = load_stream((const Words4*)(plane + tile * 1024 + lane * 16));
        raw.codes[1] = load_stream((const Words4*)(plane + tile * 1024 + 512 + lane * 16));
    } else if constexpr (FORMAT == FORMAT_Q2_K || FORMAT == FORMAT_Q3_K) {
        raw.pairs = load_stream((const Words2*)(plane + tile * 256 + lane * 8));
    } else {
        raw.codes[0] = load_stream((const Words4*)(plane + tile * 512 + lane * 16));
    }
    if constexpr (FORMAT == FORMAT_Q6_K) {
        raw.pairs = load_stream((const Words2*)(plane + weight.high + tile * 256 + lane * 8));
    }
    if constexpr (FORMAT == FORMAT_Q5_0 || FORMAT == FORMAT_Q5_1 || FORMAT == FORMAT_Q5_K || FORMAT == FORMAT_Q3_K) {
        raw.high = load_stream((const u32*)(plane + weight.high + tile * 128 + lane * 4));
    }
    return raw;
}

// `value` shifted left by a compile-time amount, right when it is negative.
template <int SHIFT>
__device__ __forceinline__ u32 shifted(u32 value) {
    if constexpr (SHIFT >= 0) return value << SHIFT;
    return value >> (SHIFT < 0 ? -SHIFT : 0);
}

// Four signed bytes: rows g + 16 M + 8 (SLOT % 2), columns 16 (SLOT / 2) + 4t .. + 3, of every format but MXFP4.
template <int FORMAT, int M, int SLOT>
__device__ __forceinline__ u32 fragment(const TileCodes& raw) {
    constexpr int PLACE = 4 * M + SLOT;
    constexpr int WORD = 2 * M + SLOT % 2;
    const u32 word = WORD == 0 ? raw.codes[0].x : WORD == 1 ? raw.codes[0].y : WORD == 2 ? raw.codes[0].z : raw.codes[0].w;
    const u32 pair = M == 0 ? raw.pairs.x : raw.pairs.y;
    constexpr int NIBBLE = SLOT / 2 * 4;
    if constexpr (FORMAT == FORMAT_Q8_0) {
        const Words4& codes = raw.codes[M];
        return SLOT == 0 ? codes.x : SLOT == 1 ? codes.y : SLOT == 2 ? codes.z : codes.w;
    } else if constexpr (FORMAT == FORMAT_Q4_0) {
        return shifted<4 - NIBBLE>(word) & 0xf0f0f0f0u;
    } else if constexpr (FORMAT == FORMAT_Q4_1 || FORMAT == FORMAT_Q4_K) {
        return shifted<-NIBBLE>(word) & 0x0f0f0f0fu;
    } else if constexpr (FORMAT == FORMAT_Q5_0) {
        return (shifted<3 - NIBBLE>(word) & 0x78787878u) | (shifted<PLACE>(raw.high) & 0x80808080u);
    } else if constexpr (FORMAT == FORMAT_Q5_1 || FORMAT == FORMAT_Q5_K) {
        return (shifted<-NIBBLE>(word) & 0x0f0f0f0fu) | (shifted<PLACE - 3>(raw.high) & 0x10101010u);
    } else if constexpr (FORMAT == FORMAT_Q6_K) {
        return (shifted<2 - NIBBLE>(word) & 0x3c3c3c3cu) | (shifted<2 * SLOT>(pair) & 0xc0c0c0c0u);
    } else if constexpr (FORMAT == FORMAT_Q3_K) {
        return (shifted<2 * SLOT - 1>(pair) & 0x60606060u) | (shifted<PLACE>(raw.high) & 0x80808080u);
    } else {
        return shifted<2 * SLOT - 6>(pair) & 0x03030303u;
    }
}

// Four MXFP4 codes (the low 16 bits of `codes`) to bytes of 192 + 2 E2M1. A code whose sign does not match a table
// replicates that table's top bit, which is one: `and` keeps the other table's byte.
__device__ __forceinline__ u32 mxfp4_bytes(u32 codes, u32 flipped) {
    return permute_bytes(0xc3c2c1c0u, 0xccc8c6c4u, codes) & permute_bytes(0xbdbebfc0u, 0xb4b8babcu, flipped);
}

template <int FORMAT, int M>
__device__ __forceinline__ void fragments(const TileCodes& raw, u32 (&a)[4]) {
    if constexpr (FORMAT == FORMAT_MXFP4) {
        const u32 first = M == 0 ? raw.codes[0].x : raw.codes[0].z;
        const u32 second = M == 0 ? raw.codes[0].y : raw.codes[0].w;
        const u32 first_flipped = first ^ 0x88888888u;
        const u32 second_flipped = second ^ 0x88888888u;
        a[0] = mxfp4_bytes(first, first_flipped);
        a[1] = mxfp4_bytes(second, second_flipped);
        a[2] = mxfp4_bytes(first >> 16, first_flipped >> 16);
        a[3] = mxfp4_bytes(second >> 16, second_flipped >> 16);
    } else {
        a[0] = fragment<FORMAT, M, 0>(raw);
        a[1] = fragment<FORMAT, M, 1>(raw);
        a[2] = fragment<FORMAT, M, 2>(raw);
        a[3] = fragment<FORMAT, M, 3>(raw);
    }
}

// Scales of a lane's four rows g + 8w, as loaded: of one block, or of one super-block.
template <int FORMAT>
struct UnitScales {
    u32 words[Codec<FORMAT>::SUPER ? 20 : 4];
};

__device__ __forceinline__ float low_half(u32 word) { return half_to_float((u16)word); }
__device__ __forceinline__ float high_half(u32 word) { return half_to_float((u16)(word >> 16)); }

// Splits a 12-byte table of 6-bit pairs into bytes: scales 0-3, 4-7, minima 0-3, 4-7.
__device__ __forceinline__ void unpack_pairs(const Words4& record, u32* out) {
    out[0] = record.y & 0x3f3f3f3fu;
    out[1] = (record.w & 0x0f0f0f0fu) | ((record.y >> 2) & 0x30303030u);
    out[2] = record.z & 0x3f3f3f3fu;
    out[3] = ((record.w >> 4) & 0x0f0f0f0fu) | ((record.z >> 2) & 0x30303030u);
}

// Splits Q3_K's 12-byte table into 16 bytes of 0..63.
__device__ __forceinline__ void unpack_sub_scales(const Words4& record, u32* out) {
    out[0] = (record.x & 0x0f0f0f0fu) | ((record.z << 4) & 0x30303030u);
    out[1] = (record.y & 0x0f0f0f0fu) | ((record.z << 2) & 0x30303030u);
    out[2] = ((record.x >> 4) & 0x0f0f0f0fu) | (record.z & 0x30303030u);
    out[3] = ((record.y >> 4) & 0x0f0f0f0fu) | ((record.z >> 2) & 0x30303030u);
}

// `unit` counts blocks (super-blocks) through the whole weight; `lane_row` is lane / 4.
template <int FORMAT>
__device__ __forceinline__ UnitScales<FORMAT> load_scales(const Weight& weight, u64 unit, u32 lane_row) {
    UnitScales<FORMAT> scales;
    const u8* plane = weight.base + weight.scales;
    const u64 quad = unit * 8 + lane_row;
    if constexpr (Codec<FORMAT>::SUPER) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            const Words4 record = load_stream((const Words4*)plane + quad * 4 + w);
            u32* out = scales.words + 4 * w;
            if constexpr (FORMAT == FORMAT_Q4_K || FORMAT == FORMAT_Q5_K) {
                unpack_pairs(record, out);
                scales.words[16 + w] = record.x;
            } else if constexpr (FORMAT == FORMAT_Q3_K) {
                unpack_sub_scales(record, out);
                scales.words[16 + w] = record.w;
            } else {
                out[0] = record.x;
                out[1] = record.y;
                out[2] = record.z;
                out[3] = record.w;
            }
        }
        if constexpr (FORMAT == FORMAT_Q6_K) {
            const Words2 supers = load_stream((const Words2*)(weight.base + weight.supers) + quad);
            scales.words[16] = supers.x;
            scales.words[17] = supers.x >> 16;
            scales.words[18] = supers.y;
            scales.words[19] = supers.y >> 16;
        } else if constexpr (FORMAT == FORMAT_Q2_K) {
            const Words4 supers = load_stream((const Words4*)(weight.base + weight.supers) + quad);
            scales.words[16] = supers.x;
            scales.words[17] = supers.y;
            scales.words[18] = supers.z;
            scales.words[19] = supers.w;
        }
    } else if constexpr (FORMAT == FORMAT_Q4_1 || FORMAT == FORMAT_Q5_1) {
        const Words4 record = load_stream((const Words4*)plane + quad);
        scales.words[0] = record.x;
        scales.words[1] = record.y;
        scales.words[2] = record.z;
        scales.words[3] = record.w;
    } else if constexpr (FORMAT == FORMAT_MXFP4) {
        scales.words[0] = load_stream((const u32*)plane + quad);
    } else {
        const Words2 record = load_stream((const Words2*)plane + quad);
        scales.words[0] = record.x;
        scales.words[1] = record.y;
    }
    return scales;
}

// Byte `index` of four words.
__device__ __forceinline__ u32 byte_of(const u32* words, u32 index) {
    const u32 i = index / 4;
    const u32 word = i == 0 ? words[0] : i == 1 ? words[1] : i == 2 ? words[2] : words[3];
    return (word >> (8 * (index % 4))) & 255;
}

// Factor of the codes in row g + 8 w, block j of the unit, column half `half`.
template <int FORMAT>
__device__ __forceinline__ float code_scale(const UnitScales<FORMAT>& scales, u32 w, u32 j, u32 half) {
    const u32* words = scales.words;
    if constexpr (FORMAT == FORMAT_Q4_K || FORMAT == FORMAT_Q5_K) {
        return low_half(words[16 + w]) * (float)byte_of(words + 4 * w, j);
    } else if constexpr (FORMAT == FORMAT_Q6_K) {
        return low_half(words[16 + w]) * (float)(i8)byte_of(words + 4 * w, 2 * j + half);
    } else if constexpr (FORMAT == FORMAT_Q3_K) {
        return low_half(words[16 + w]) * (float)((i32)byte_of(words + 4 * w, 2 * j + half) - 32);
    } else if constexpr (FORMAT == FORMAT_Q2_K) {
        return low_half(words[16 + w]) * (float)(byte_of(words + 4 * w, 2 * j + half) & 15);
    } else if constexpr (FORMAT == FORMAT_Q4_1 || FORMAT == FORMAT_Q5_1) {
        return low_half(words[w]);
    } else if constexpr (FORMAT == FORMAT_MXFP4) {
        return __uint_as_float(byte_of(words, w) << 23);
    } else {
        return w % 2 == 0 ? low_half(words[w / 2]) : high_half(words[w / 2]);
    }
}

// What is added for every unit of activation: the minimum, signed.
template <int FORMAT>
__device__ __forceinline__ float code_minimum(const UnitScales<FORMAT>& scales, u32 w, u32 j, u32 half) {
    const u32* words = scales.words;
    if constexpr (FORMAT == FORMAT_Q4_K || FORMAT == FORMAT_Q5_K) {
        return -high_half(words[16 + w]) * (float)byte_of(words + 4 * w, 8 + j);
    } else if constexpr (FORMAT == FORMAT_Q2_K) {
        return -high_half(words[16 + w]) * (float)(byte_of(words + 4 * w, 2 * j + half) >> 4);
    } else {
        return high_half(words[w]);
    }
}

// Accumulators of one warp: 32 rows x 8 NT columns. [m][n][c]: row g + 16m + 8 (c / 2), column 8n + 2t + c % 2.
template <int NT>
struct Accumulators {
    float at[2][NT][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int c = 0; c < 4; ++c) at[m][n][c] = 0.0f;
    }
};

__device__ __forceinline__ float block_sum(i32 high, i32 low, float scale) {
    return scale * (float)((i32)((u32)high << 8) + low);
}

// Adds 16 rows x 8 columns of one block to `acc`: row half `m` of the tile, block `j` of the unit.
template <int FORMAT>
__device__ __forceinline__ void add_block(const u32 (&a)[4], const UnitScales<FORMAT>& scales, u32 m, u32 j,
                                          const ActivationCodes& x, const ActivationSums& left,
                                          const ActivationSums& right, float (&acc)[4]) {
    using C = Codec<FORMAT>;
    constexpr int PARTS = C::HALVES ? 2 : 1;
    const float scale_x[2] = {left.scale, right.scale};
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        i32 high[4] = {0, 0, 0, 0};
        i32 low[4] = {0, 0, 0, 0};
        if constexpr (C::HALVES) {
            mma_s8_k16(high, a[2 * part], a[2 * part + 1], part == 0 ? x.x : x.y);
            mma_s8_k16(low, a[2 * part], a[2 * part + 1], part == 0 ? x.z : x.w);
        } else {
            if constexpr (C::BIASED) {
                low[0] = low[2] = left.bias;
                low[1] = low[3] = right.bias;
            }
            mma_s8_k32(high, a[0], a[1], a[2], a[3], x.x, x.y);
            mma_s8_k32(low, a[0], a[1], a[2], a[3], x.z, x.w);
        }
        const float d[2] = {code_scale(scales, 2 * m, j, part), code_scale(scales, 2 * m + 1, j, part)};
#pragma unroll
        for (int c = 0; c < 4; ++c) acc[c] = fmaf(d[c / 2], block_sum(high[c], low[c], scale_x[c % 2]), acc[c]);
        if constexpr (C::MINIMUM) {
            const float least[2] = {code_minimum(scales, 2 * m, j, part), code_minimum(scales, 2 * m + 1, j, part)};
            const float sums[2] = {
                C::HALVES ? (part == 0 ? left.low_half : left.high_half) : left.low_half + left.high_half,
                C::HALVES ? (part == 0 ? right.low_half : right.high_half) : right.low_half + right.high_half};
#pragma unroll
            for (int c = 0; c < 4; ++c) acc[c] = fmaf(least[c / 2], sums[c % 2], acc[c]);
        }
    }
}

// Adds block j of a unit for all columns. `columns(n, codes, left, right)` yields the activations of columns 8n..8n+7:
// the lane's codes of column g and the sums of columns 2t and 2t + 1. Groups of columns from `columns.groups` on hold
// nothing and are skipped.
template <int FORMAT, int NT, class Columns>
__device__ __forceinline__ void add_tile(const TileCodes& raw, const UnitScales<FORMAT>& scales, u32 j,
                                         const Columns& columns, Accumulators<NT>& acc) {
    u32 first[4], second[4];
    fragments<FORMAT, 0>(raw, first);
    fragments<FORMAT, 1>(raw, second);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
        if (n > 0 && n >= columns.groups) break;
        ActivationCodes x;
        ActivationSums left, right;
        columns(n, x, left, right);
        add_block<FORMAT>(first, scales, 0, j, x, left, right, acc.at[0][n]);
        add_block<FORMAT>(second, scales, 1, j, x, left, right, acc.at[1][n]);
    }
}

// Adds units [begin, end) of row tile `row_tile` (counted through all experts). `at(block)` yields the columns functor
// of one block. DEPTH blocks are in flight.
template <int FORMAT, int NT, class At>
__device__ __forceinline__ void add_units(const Weight& weight, u64 row_tile, u32 begin, u32 end, u32 lane, const At& at,
                                          Accumulators<NT>& acc) {
    const u64 first_tile = row_tile * weight.blocks;
    if constexpr (Codec<FORMAT>::SUPER) {
        constexpr u32 DEPTH = NT == 1 ? 8 : 4;
#pragma unroll 1
        for (u32 unit = begin; unit < end; ++unit) {
            const UnitScales<FORMAT> scales = load_scales<FORMAT>(weight, first_tile / 8 + unit, lane / 4);
#pragma unroll 1
            for (u32 first = 0; first < 8; first += DEPTH) {
                TileCodes raw[DEPTH];
#pragma unroll
                for (u32 j = 0; j < DEPTH; ++j) {
                    raw[j] = load_codes<FORMAT>(weight, first_tile + unit * 8 + first + j, lane);
                }
#pragma unroll
                for (u32 j = 0; j < DEPTH; ++j) add_tile<FORMAT, NT>(raw[j], scales, first + j, at(unit * 8 + first + j), acc);
            }
        }
    } else {
        constexpr u32 DEPTH = 4;
        u32 unit = begin;
#pragma unroll 1
        for (; unit + DEPTH <= end; unit += DEPTH) {
            TileCodes raw[DEPTH];
            UnitScales<FORMAT> scales[DEPTH];
#pragma unroll
            for (u32 j = 0; j < DEPTH; ++j) {
                raw[j] = load_codes<FORMAT>(weight, first_tile + unit + j, lane);
                scales[j] = load_scales<FORMAT>(weight, first_tile + unit + j, lane / 4);
            }
#pragma unroll
            for (u32 j = 0; j < DEPTH; ++j) add_tile<FORMAT, NT>(raw[j], scales[j], 0, at(unit + j), acc);
        }
#pragma unroll 1
        for (; unit < end; ++unit) {
            const TileCodes raw = load_codes<FORMAT>(weight, first_tile + unit, lane);
            const UnitScales<FORMAT> scales = load_scales<FORMAT>(weight, first_tile + unit, lane / 4);
            add_tile<FORMAT, NT>(raw, scales, 0, at(unit), acc);
        }
    }
}
