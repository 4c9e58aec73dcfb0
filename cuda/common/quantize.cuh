// Making activation records (common/activation.cuh) from f32, eight lanes to a block of 32.
#pragma once
#include "common/activation.cuh"
#include "common/mma.cuh"

// A code is 256 high + low with low in -128..127; the low bytes of four.
__device__ __forceinline__ u32 low_bytes(const i32 (&codes)[4]) {
    return permute_bytes(permute_bytes(codes[0], codes[1], 0x40), permute_bytes(codes[2], codes[3], 0x40), 0x5410);
}

__device__ __forceinline__ u32 high_bytes(const i32 (&codes)[4]) {
    return permute_bytes(permute_bytes(codes[0] + 128, codes[1] + 128, 0x51), permute_bytes(codes[2] + 128, codes[3] + 128, 0x51),
                         0x5410);
}

// Elements 4 part .. 4 part + 3 of a block, by the `part`-th of its eight adjacent lanes. All lanes of the warp call it.
// `codes` points to the block's record as words; lanes whose `live` is false store nothing. `planes`: high bytes first, low
// bytes behind, both in order; otherwise as a lane of mma takes them.
__device__ __forceinline__ void quantize_block(const Floats4& x, u32 part, bool live, u32* codes, ActivationSums* sums,
                                               bool planes = false) {
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
    const u32 high = high_bytes(codes_of);
    const u32 low = low_bytes(codes_of);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const i32 other_half = __shfl_xor_sync(0xffffffffu, sum, 4);
    if (!live) return;
    // Lane t = part % 4 of the product, first or second half of the block.
    const u32 place = planes ? part : (part % 4) * 4 + part / 4;
    codes[place] = high;
    codes[place + (planes ? 8 : 2)] = low;
    if (part == 0) *sums = {scale, scale * (float)sum, scale * (float)other_half, 64 * (sum + other_half)};
}

// A whole block by one thread, high and low bytes apart; the bits are those of quantize_block.
__device__ __forceinline__ void quantize_alone(const float (&x)[32], u8* codes, ActivationSums* sums) {
    u32 magnitude = 0;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        const u32 bits = __float_as_uint(x[i]) & 0x7fffffffu;
        magnitude = bits > magnitude ? bits : magnitude;
    }
    const float largest = activation_largest(magnitude);
    const float scale = largest / ACTIVATION_LARGEST;
    const float inverse = ACTIVATION_LARGEST / largest;
    i32 halves[2] = {0, 0};
    u32 high[8], low[8];
#pragma unroll
    for (int word = 0; word < 8; ++word) {
        i32 codes_of[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            codes_of[i] = __float2int_rn(x[4 * word + i] * inverse);
            halves[word / 4] += codes_of[i];
        }
        high[word] = high_bytes(codes_of);
        low[word] = low_bytes(codes_of);
    }
    Words4* target = (Words4*)codes;
    target[0] = {high[0], high[1], high[2], high[3]};
    target[1] = {high[4], high[5], high[6], high[7]};
    target[2] = {low[0], low[1], low[2], low[3]};
    target[3] = {low[4], low[5], low[6], low[7]};
    *sums = {scale, scale * (float)halves[0], scale * (float)halves[1], 64 * (halves[0] + halves[1])};
}
