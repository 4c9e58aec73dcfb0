// The rotation of one element of a head by its position's angles.
#pragma once
#include "common/types.cuh"

struct Rotation {
    const float* table;  // [table_rows, rotated]: cosines, then sines
    u32 head_dim;
    u32 rotated;
    u32 table_rows;
    u32 interleaved;
};

// Element `column` of a row x of whole heads, rotated; NaN for a position beyond the table.
__device__ __forceinline__ float rotated_at(const Rotation& rotation, const float* x, u32 column, u32 position) {
    const u32 element = column % rotation.head_dim;
    const float own = x[column];
    if (element >= rotation.rotated) return own;
    if (position >= rotation.table_rows) return NAN_F32;
    const u32 half = rotation.rotated / 2;
    const u32 frequency = rotation.interleaved ? element / 2 : element % half;
    const bool first = rotation.interleaved ? element % 2 == 0 : element < half;
    const u32 distance = rotation.interleaved ? 1 : half;
    const float other = x[first ? column + distance : column - distance];
    const float* angles = rotation.table + (u64)position * rotation.rotated;
    const float cosine = angles[frequency];
    const float sine = angles[half + frequency];
    const float product = __fmul_rn(other, sine);
    return first ? __fmaf_rn(own, cosine, -product) : __fmaf_rn(own, cosine, product);
}
