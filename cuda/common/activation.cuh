// Activations as the products read them: 12-bit block floating point.
//
// Every 32 consecutive elements of a row share a scale, x = scale * q, where the block's largest magnitude becomes
// q = 2047: what binary16 holds exactly, and what 256 high + low makes of two signed bytes. All products and sums inside
// a block are then exact, as integers and as binary16 with f32 sums, so a block's sum has the same bits in whatever
// order, tile shape or instruction it is formed. A row is `blocks` records of 64 bytes of codes and, elsewhere,
// `blocks` records of 16 bytes of sums.
//
// For warpgroups (common/group_product.cuh) a record's codes are binary16, elements 4t, 4t + 1, 4t + 2, 4t + 3 of either half at
// the places 2t, 2t + 1, 8 + 2t, 9 + 2t, and a row's sums are planes: [scale, both halves, low_half, high_half][sums_stride].
#pragma once
#include "common/async.cuh"
#include "common/types.cuh"

#define ACTIVATION_CODE_BYTES 64

// Largest |q|.
#define ACTIVATION_LARGEST 2047.0f
// Blocks whose largest magnitude is below 2^-100 share the scale of that.
#define ACTIVATION_SMALLEST 7.8886090522e-31f

// Blocks of a row of sums for warpgroups: whole sectors.
__device__ __forceinline__ u32 sums_stride(u32 blocks) { return (blocks + 7) / 8 * 8; }

struct alignas(16) ActivationSums {
    float scale;
    float low_half;   // scale * (sum of q over the block's first 16 elements)
    float high_half;  // scale * (sum of q over the last 16)
    i32 bias;         // 64 * (sum of q): undoes the offset of MXFP4's table
};

// Codes of elements 4t..4t+3 and 16+4t..16+4t+3: what lane 4g + t feeds to the tensor cores for column g.
typedef Words4 ActivationCodes;  // x: high, first half; y: high, second half; z: low, first half; w: low, second half

// Whom records are for.
enum RecordUse : u32 {
    FOR_WARPS = 0,
    FOR_WARPGROUPS = 1,       // whose weights have no minimum: of the sums nothing is read but the scale
    FOR_WARPGROUPS_SUMS = 2,  // or have one
};

// Where a record goes.
struct RecordPlace {
    u8* codes;
    ActivationSums* sums;
    u32 stride;  // of the planes of sums, where it is for warpgroups
    u32 use;

    __device__ __forceinline__ RecordPlace(u8* codes, ActivationSums* sums, u64 record)
        : codes(codes + record * ACTIVATION_CODE_BYTES), sums(sums + record), stride(0), use(FOR_WARPS) {}

    __device__ __forceinline__ RecordPlace(u8* codes, ActivationSums* sums, u32 row, u32 blocks, u32 block, u32 use)
        : RecordPlace(codes, sums, (u64)row * blocks + block) {
        if (use == FOR_WARPS) return;
        this->use = use;
        stride = sums_stride(blocks);
        this->sums = (ActivationSums*)((float*)sums + (u64)row * 4 * stride + block);
    }

    __device__ __forceinline__ void store(const ActivationSums& record) const {
        if (use == FOR_WARPS) {
            *sums = record;
            return;
        }
        float* plane = (float*)sums;
        plane[0] = record.scale;
        if (use == FOR_WARPGROUPS) return;
        // As the warps' products add them, each rounded.
        plane[stride] = __fadd_rn(record.low_half, record.high_half);
        plane[2 * stride] = record.low_half;
        plane[3 * stride] = record.high_half;
    }
};

// Largest magnitude of a block from its bits. NaN and infinity become NaN, which poisons every product of the row.
__device__ __forceinline__ float activation_largest(u32 magnitude_bits) {
    if (magnitude_bits >= 0x7f800000u) return NAN_F32;
    return fmaxf(__uint_as_float(magnitude_bits), ACTIVATION_SMALLEST);
}
