// linear, first step: activations to 16-bit block floating point (common/activation.cuh).
//
// x: [rows, columns] f32 -> codes: [rows, columns / 32] records of 64 bytes, sums: [rows, columns / 32] records of 16.
// Grid: (ceil(columns / 1024), most rows); a warp makes four records, eight lanes each. Moves 4 bytes in and 2.5 out per
// element; bound by latency. Rounds each element to 1 / 32639 of its block's largest: noise of
// about 4e-10 of the signal's power.
#include "common/activation.cuh"

struct LinearQuantizeArgs {
    const float* x;
    u8* codes;
    ActivationSums* sums;
    const u32* rows;  // live rows, before `rows_per`
    u32 blocks;
    u32 rows_per;  // activation rows per live row
};

KERNEL(linear_quantize_f32, LinearQuantizeArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 row = blockIdx.y;
    const u32 part = threadIdx.x % 8;
    const u32 block = blockIdx.x * 32 + threadIdx.x / 8;
    if (row >= *args.rows * args.rows_per) return;
    // Blocks past the end stay for the shuffles.
    const bool live = block < args.blocks;
    const u64 record = (u64)row * args.blocks + (live ? block : 0);
    struct alignas(16) Four {
        float at[4];
    };
    const Four x = ((const Four*)args.x)[record * 8 + part];
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
    u32 high = 0;
    u32 low = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const i32 code = largest == largest ? __float2int_rn(x.at[i] * inverse) : 0;
        sum += code;
        // code = 256 high + low with low in -128..127.
        high |= (u32)(((code + 128) >> 8) & 255) << (8 * i);
        low |= (u32)(code & 255) << (8 * i);
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const i32 other_half = __shfl_xor_sync(0xffffffffu, sum, 4);
    if (!live) return;
    // Elements 4 part ..: lane t = part % 4 of the product, first or second half of the block.
    u32* codes = (u32*)(args.codes + record * ACTIVATION_CODE_BYTES) + (part % 4) * 4 + part / 4;
    codes[0] = high;
    codes[2] = low;
    if (part == 0) {
        args.sums[record] = {scale, scale * (float)sum, scale * (float)other_half, 64 * (sum + other_half)};
    }
}
