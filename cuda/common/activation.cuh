// Activations as the products read them: 16-bit block floating point.
//
// Every 32 consecutive elements of a row share a power of two `scale`, x = scale * q with q = 256 high + low an integer
// of magnitude <= 32639, high and low signed bytes. All products and sums inside a block are then exact integers, so a
// block's sum has the same bits in whatever order, tile shape or instruction it is formed. A row is `blocks` records of
// 64 bytes of codes and, in a plane behind all rows' codes, `blocks` records of 16 bytes of sums.
#pragma once
#include "common/async.cuh"
#include "common/types.cuh"

#define ACTIVATION_CODE_BYTES 64

// Largest |q|: high must stay a signed byte after low is taken out of it.
#define ACTIVATION_HEADROOM 1.004f

struct alignas(16) ActivationSums {
    float scale;
    float low_half;   // scale * (sum of q over the block's first 16 elements)
    float high_half;  // scale * (sum of q over the last 16)
    i32 bias;         // 64 * (sum of q): undoes the offset of MXFP4's table
};

// Codes of elements 4t..4t+3 and 16+4t..16+4t+3: what lane 4g + t feeds to the tensor cores for column g.
typedef Words4 ActivationCodes;  // x: high, first half; y: high, second half; z: low, first half; w: low, second half

// 2^exponent for -126 <= exponent <= 127.
__device__ __forceinline__ float power_of_two(i32 exponent) { return __uint_as_float((u32)(exponent + 127) << 23); }

// The scale for a block whose largest magnitude has these bits. NaN and infinity make a NaN scale, which poisons every
// product of the row.
__device__ __forceinline__ float activation_scale(u32 magnitude_bits) {
    if (magnitude_bits >= 0x7f800000u) return NAN_F32;
    const u32 bits = __float_as_uint(__uint_as_float(magnitude_bits) * ACTIVATION_HEADROOM);
    const i32 exponent = (i32)(bits >> 23) - 127 - 14;
    return power_of_two(exponent < -120 ? -120 : exponent);
}

// The integer code of x; `inverse` is 1 / scale, exact.
__device__ __forceinline__ i32 activation_code(float x, float inverse) { return __float2int_rn(x * inverse); }
