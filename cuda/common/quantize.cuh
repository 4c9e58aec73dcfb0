// Making activation records (common/activation.cuh) from f32, eight lanes to a block of 32.
#pragma once
#include "common/activation.cuh"
#include "common/approximate.cuh"
#include "common/mma.cuh"

// A code is 256 high + low with low in -128..127; the low bytes of four.
__device__ __forceinline__ u32 low_bytes(const i32 (&codes)[4]) {
    return permute_bytes(permute_bytes(codes[0], codes[1], 0x40), permute_bytes(codes[2], codes[3], 0x40), 0x5410);
}

__device__ __forceinline__ u32 high_bytes(const i32 (&codes)[4]) {
    return permute_bytes(permute_bytes(codes[0] + 128, codes[1] + 128, 0x51), permute_bytes(codes[2] + 128, codes[3] + 128, 0x51),
                         0x5410);
}

// Two codes as binary16, the first in the low half.
__device__ __forceinline__ u32 halves_of(i32 first, i32 second) {
    return pack_halves((float)first, (float)second);
}

// Elements 4 part .. 4 part + 3 of a block, by the `part`-th of its eight adjacent lanes. All lanes of the warp call it.
// Lanes whose `live` is false store nothing.
__device__ __forceinline__ void quantize_block(const Floats4& x, u32 part, bool live, const RecordPlace& record) {
    u32 magnitude = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u32 bits = __float_as_uint(x.at[i]) & 0x7fffffffu;
        magnitude = bits > magnitude ? bits : magnitude;
    }
#pragma unroll
    for (int distance = 1; distance < 8; distance <<= 1) {
        const u32 other = __shfl_xor_sync(0xffffffffu, magnitude, distance);
        magnitude = other > magnitude ? other : magnitude;
    }
    const float largest = activation_largest(magnitude);
    const float scale = largest / ACTIVATION_LARGEST;
    const float inverse = ACTIVATION_LARGEST / largest;
    i32 sum = 0;
    i32 codes_of[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        // A NaN becomes zero.
        codes_of[i] = __float2int_rn(x.at[i] * inverse);
        sum += codes_of[i];
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const i32 other_half = __shfl_xor_sync(0xffffffffu, sum, 4);
    if (!live) return;
    u32* codes = (u32*)record.codes;
    // Lane t = part % 4 of the product, first or second half of the block.
    if (record.use != FOR_WARPS) {
        const u32 place = part / 4 * 8 + part % 4;
        codes[place] = halves_of(codes_of[0], codes_of[1]);
        codes[place + 4] = halves_of(codes_of[2], codes_of[3]);
    } else {
        const u32 place = part % 4 * 4 + part / 4;
        codes[place] = high_bytes(codes_of);
        codes[place + 2] = low_bytes(codes_of);
    }
    if (part == 0) record.store({scale, scale * (float)sum, scale * (float)other_half, 64 * (sum + other_half)});
}

// A block by two lanes, 16 apart, for warpgroups; the bits are those of quantize_block. `y`: elements 8 upper .. 8 upper + 7 of
// either half of the block, `magnitude`: the bits of their largest without sign. All lanes of the warp call it. Lanes whose
// `live` is false store nothing, one of the two that `keeps` stores the sums.
__device__ __forceinline__ void quantize_by_two(const float (&y)[16], u32 magnitude, u32 upper, bool live, bool keeps,
                                                const RecordPlace& record) {
    const u32 other = __shfl_xor_sync(0xffffffffu, magnitude, 16);
    const float largest = activation_largest(other > magnitude ? other : magnitude);
    const float scale = largest / ACTIVATION_LARGEST;
    const float inverse = ACTIVATION_LARGEST / largest;
    i32 halves[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        i32 codes_of[8];
        halves[half] = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            codes_of[i] = __float2int_rn(y[8 * half + i] * inverse);
            halves[half] += codes_of[i];
        }
        halves[half] += __shfl_xor_sync(0xffffffffu, halves[half], 16);
        if (!live) continue;
        Words2* codes = (Words2*)record.codes + 4 * half + upper;
        codes[0] = {halves_of(codes_of[0], codes_of[1]), halves_of(codes_of[4], codes_of[5])};
        codes[2] = {halves_of(codes_of[2], codes_of[3]), halves_of(codes_of[6], codes_of[7])};
    }
    if (live && keeps) record.store({scale, scale * (float)halves[0], scale * (float)halves[1], 64 * (halves[0] + halves[1])});
}
