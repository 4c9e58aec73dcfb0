// Activations as the products read them: 16-bit block floating point.
//
// Every 32 consecutive elements of a row share a scale, x = scale * q, where the block's largest magnitude becomes
// q = 32639: 256 high + low with high and low signed bytes. All products and sums inside a block are then exact
// integers, so a block's sum has the same bits in whatever order, tile shape or instruction it is formed. A row is
// `blocks` records of 64 bytes of codes and, in a plane behind all rows' codes, `blocks` records of 16 bytes of sums.
#pragma once
#include "common/async.cuh"
#include "common/types.cuh"

#define ACTIVATION_CODE_BYTES 64

// Largest |q|: `high` must stay a signed byte once `low` is taken out.
#define ACTIVATION_LARGEST 32639.0f
// Blocks whose largest magnitude is below 2^-100 share the scale of that.
#define ACTIVATION_SMALLEST 7.8886090522e-31f

struct alignas(16) ActivationSums {
    float scale;
    float low_half;   // scale * (sum of q over the block's first 16 elements)
    float high_half;  // scale * (sum of q over the last 16)
    i32 bias;         // 64 * (sum of q): undoes the offset of MXFP4's table
};

// Codes of elements 4t..4t+3 and 16+4t..16+4t+3: what lane 4g + t feeds to the tensor cores for column g.
typedef Words4 ActivationCodes;  // x: high, first half; y: high, second half; z: low, first half; w: low, second half

// Largest magnitude of a block from its bits. NaN and infinity become NaN, which poisons every product of the row.
__device__ __forceinline__ float activation_largest(u32 magnitude_bits) {
    if (magnitude_bits >= 0x7f800000u) return NAN_F32;
    return fmaxf(__uint_as_float(magnitude_bits), ACTIVATION_SMALLEST);
}
