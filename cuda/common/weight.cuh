// How a weight lies in device memory, and the exact decoder of one of its elements. The host side is layout.rs, whose
// index arithmetic mirrors this file function by function and is tested against the decoders of backends/core.
//
// Quantised formats: the matrix is cut into tiles of 32 rows x 32 columns, row tile by row tile, columns contiguous.
// A tile is stored in the order the tensor cores take it (mma m16n8k32, operand A): lane 4g + t of a warp owns rows
// g, g+8, g+16, g+24 and columns 4t..4t+3, 16+4t..16+4t+3, and its part of each plane is one aligned word or vector:
//
//   4-bit codes   16 bytes a lane: word w = row g + 8w; byte i: low nibble column 4t+i, high nibble column 16+4t+i
//                 (MXFP4: nibble n of the word is column 16(n/4) + 4t + n%4, a selector for prmt)
//   2-bit codes    8 bytes a lane: word m = rows g+16m, g+16m+8; byte i, bits 6-2s: row half and column half s
//   high bits      4 bytes a lane: byte i, bit 7-(4m+s)
//   8-bit codes   two planes-in-tile m of 16 bytes a lane: word s, byte i
//
// with s = (row / 8) % 2 + 2 (column / 16). Scales follow in planes of their own: the four rows of a lane are adjacent.
// Codes are stored so that a mask and a shift make signed bytes of them (see tile.cuh). Rows are padded to whole tiles
// with zero scales. Plain floats: row tiles of 8, chunks of 16 bytes, [tile][chunk][row].
#pragma once
#include "common/types.cuh"

// GGUF type ids.
#define FORMAT_F32 0
#define FORMAT_F16 1
#define FORMAT_Q4_0 2
#define FORMAT_Q4_1 3
#define FORMAT_Q5_0 6
#define FORMAT_Q5_1 7
#define FORMAT_Q8_0 8
#define FORMAT_Q2_K 10
#define FORMAT_Q3_K 11
#define FORMAT_Q4_K 12
#define FORMAT_Q5_K 13
#define FORMAT_Q6_K 14
#define FORMAT_BF16 30
#define FORMAT_MXFP4 39

// `struct WeightArgs`. Planes are byte offsets from `base`; codes are the first plane.
struct Weight {
    const u8* base;
    u64 high;       // high bits of the codes
    u64 scales;     // per block, or per super-block the record of its sub-scales
    u64 supers;     // per super-block, where the record has no room
    u32 row_tiles;  // of one expert
    u32 blocks;     // 32-column blocks of a row; 16-byte chunks for plain floats
    u32 columns;
    u32 format;
};

// Place of an element inside its tile.
struct TilePlace {
    u32 lane;   // owner
    u32 word;   // row / 8
    u32 half;   // column / 16
    u32 byte;   // column % 4
    u32 slot;   // s above
    u32 scale;  // index among the tile's 32 rows of scales
};

__device__ __forceinline__ TilePlace tile_place(u32 row, u32 column) {
    TilePlace place;
    place.lane = 4 * (row % 8) + (column / 4) % 4;
    place.word = row / 8;
    place.half = column / 16;
    place.byte = column % 4;
    place.slot = place.word % 2 + 2 * place.half;
    place.scale = 4 * (row % 8) + place.word;
    return place;
}

__device__ __forceinline__ u32 code4_at(const u8* plane, u64 tile, const TilePlace& at) {
    const u32 byte = plane[tile * 512 + at.lane * 16 + at.word * 4 + at.byte];
    return (byte >> (4 * at.half)) & 15;
}

__device__ __forceinline__ u32 code_mxfp4_at(const u8* plane, u64 tile, const TilePlace& at) {
    const u32 byte = plane[tile * 512 + at.lane * 16 + at.word * 4 + at.half * 2 + at.byte / 2];
    return (byte >> (4 * (at.byte % 2))) & 15;
}

__device__ __forceinline__ u32 code2_at(const u8* plane, u64 tile, const TilePlace& at) {
    const u32 byte = plane[tile * 256 + at.lane * 8 + (at.word / 2) * 4 + at.byte];
    return (byte >> (6 - 2 * at.slot)) & 3;
}

__device__ __forceinline__ u32 high_at(const u8* plane, u64 tile, const TilePlace& at) {
    const u32 byte = plane[tile * 128 + at.lane * 4 + at.byte];
    return (byte >> (7 - (4 * (at.word / 2) + at.slot))) & 1;
}

__device__ __forceinline__ i32 code8_at(const u8* plane, u64 tile, const TilePlace& at) {
    return (i8)plane[tile * 1024 + (at.word / 2) * 512 + at.lane * 16 + at.slot * 4 + at.byte];
}

__device__ __forceinline__ float half_at(const u8* plane, u64 index) { return half_to_float(((const u16*)plane)[index]); }

// Pair j of a 12-byte table of 6-bit (scale, minimum) pairs.
__device__ __forceinline__ void pair_at(const u8* table, u32 j, u32& scale, u32& minimum) {
    if (j < 4) {
        scale = table[j] & 63;
        minimum = table[j + 4] & 63;
    } else {
        scale = (table[j + 4] & 15) | ((table[j - 4] >> 6) << 4);
        minimum = (table[j + 4] >> 4) | ((table[j] >> 6) << 4);
    }
}

// Sub-scale i of Q3_K's 12-byte table, 0..63.
__device__ __forceinline__ u32 sub_scale_at(const u8* table, u32 i) {
    const u32 low = i < 8 ? table[i] & 15 : table[i - 8] >> 4;
    return low | (((table[8 + i % 4] >> (2 * (i / 4))) & 3) << 4);
}

// E2M1 times two.
__device__ __forceinline__ i32 e2m1_doubled(u32 code) {
    const i32 magnitude = (0xc8643210u >> (4 * (code & 7))) & 15;
    return code & 8 ? -magnitude : magnitude;
}

__device__ __forceinline__ float plain_at(const Weight& weight, u32 row, u32 column) {
    const u32 per_chunk = weight.format == FORMAT_F32 ? 4 : 8;
    const u64 chunk = ((u64)(row / 8) * weight.blocks + column / per_chunk) * 8 + row % 8;
    const u64 index = chunk * per_chunk + column % per_chunk;
    if (weight.format == FORMAT_F32) return ((const float*)weight.base)[index];
    const u16 bits = ((const u16*)weight.base)[index];
    return weight.format == FORMAT_F16 ? half_to_float(bits) : bfloat_to_float(bits);
}

__device__ __forceinline__ float block_at(const Weight& weight, u64 tile, const TilePlace& at) {
    const u8* codes = weight.base;
    const u8* scales = weight.base + weight.scales;
    const u64 scale = tile * 32 + at.scale;
    switch (weight.format) {
        case FORMAT_Q4_0:
            return half_at(scales, scale) * (float)((i32)(code4_at(codes, tile, at) ^ 8) - 8);
        case FORMAT_Q4_1:
            return __fadd_rn(__fmul_rn(half_at(scales, 2 * scale), (float)code4_at(codes, tile, at)),
                             half_at(scales, 2 * scale + 1));
        case FORMAT_Q5_0: {
            const u32 high = high_at(weight.base + weight.high, tile, at) ^ 1;
            return half_at(scales, scale) * (float)((i32)(code4_at(codes, tile, at) | high << 4) - 16);
        }
        case FORMAT_Q5_1: {
            const u32 high = high_at(weight.base + weight.high, tile, at);
            return __fadd_rn(__fmul_rn(half_at(scales, 2 * scale), (float)(code4_at(codes, tile, at) | high << 4)),
                             half_at(scales, 2 * scale + 1));
        }
        case FORMAT_Q8_0:
            return half_at(scales, scale) * (float)code8_at(codes, tile, at);
        default: {
            const u32 exponent = scales[scale];
            if (exponent == 255) return NAN_F32;
            const float half_scale = __uint_as_float(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
            return half_scale * (float)e2m1_doubled(code_mxfp4_at(codes, tile, at));
        }
    }
}

__device__ __forceinline__ float super_block_at(const Weight& weight, u64 tile, u64 super, u32 j, const TilePlace& at) {
    const u64 record = super * 32 + at.scale;
    const u8* table = weight.base + weight.scales + record * 16;
    const u8* codes = weight.base;
    const u8* high = weight.base + weight.high;
    const u32 sub = 2 * j + at.half;
    switch (weight.format) {
        case FORMAT_Q2_K: {
            const u8* supers = weight.base + weight.supers;
            const float d = __fmul_rn(half_at(supers, 2 * record), (float)(table[sub] & 15));
            const float m = __fmul_rn(half_at(supers, 2 * record + 1), (float)(table[sub] >> 4));
            return __fsub_rn(__fmul_rn(d, (float)code2_at(codes, tile, at)), m);
        }
        case FORMAT_Q3_K: {
            const float d = half_at(table, 6) * (float)((i32)sub_scale_at(table, sub) - 32);
            const u32 code = code2_at(codes, tile, at) | (high_at(high, tile, at) ^ 1) << 2;
            return d * (float)((i32)code - 4);
        }
        case FORMAT_Q6_K: {
            const float d = half_at(weight.base + weight.supers, record) * (float)(i8)table[sub];
            const u32 code = code4_at(codes, tile, at) | (code2_at(high, tile, at) ^ 2) << 4;
            return d * (float)((i32)code - 32);
        }
        default: {
            u32 scale, minimum;
            pair_at(table + 4, j, scale, minimum);
            const float d = __fmul_rn(half_at(table, 0), (float)scale);
            const float m = __fmul_rn(half_at(table, 1), (float)minimum);
            u32 code = code4_at(codes, tile, at);
            if (weight.format == FORMAT_Q5_K) code |= high_at(high, tile, at) << 4;
            return __fsub_rn(__fmul_rn(d, (float)code), m);
        }
    }
}

// Element [row, column] of a matrix: the bits its storage format defines.
__device__ __forceinline__ float weight_at(const Weight& weight, u32 row, u32 column) {
    if (weight.format == FORMAT_F32 || weight.format == FORMAT_F16 || weight.format == FORMAT_BF16) {
        return plain_at(weight, row, column);
    }
    const u64 tile = (u64)(row / 32) * weight.blocks + column / 32;
    const TilePlace at = tile_place(row % 32, column % 32);
    if (weight.format >= FORMAT_Q2_K && weight.format <= FORMAT_Q6_K) {
        return super_block_at(weight, tile, tile / 8, column / 32 % 8, at);
    }
    return block_at(weight, tile, at);
}
