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

// What an element of a head is rotated with.
struct RotationPlace {
    bool rotates;
    bool first;       // of its pair
    u32 frequency;
    i32 partner;      // columns from it to the other one of its pair
};

__device__ __forceinline__ RotationPlace rotation_place(const Rotation& rotation, u32 element) {
    const u32 half = rotation.rotated / 2;
    RotationPlace place;
    place.rotates = element < rotation.rotated;
    place.first = rotation.interleaved ? element % 2 == 0 : element < half;
    place.frequency = rotation.interleaved ? element / 2 : place.first ? element : element - half;
    const i32 distance = rotation.interleaved ? 1 : (i32)half;
    place.partner = !place.rotates ? 0 : place.first ? distance : -distance;
    return place;
}

__device__ __forceinline__ float rotate(const RotationPlace& place, float own, float other, float cosine, float sine) {
    const float product = __fmul_rn(other, sine);
    return __fmaf_rn(own, cosine, place.first ? -product : product);
}

// Element `column` of a row x of whole heads, rotated; NaN for a position beyond the table.
__device__ __forceinline__ float rotated_at(const Rotation& rotation, const float* x, u32 column, u32 position) {
    const RotationPlace place = rotation_place(rotation, column % rotation.head_dim);
    const float own = x[column];
    if (!place.rotates) return own;
    if (position >= rotation.table_rows) return NAN_F32;
    const float* angles = rotation.table + (u64)position * rotation.rotated;
    return rotate(place, own, x[(i32)column + place.partner], angles[place.frequency],
                  angles[rotation.rotated / 2 + place.frequency]);
}
