// Functions of the special unit, and packing for the tensor cores, as inline PTX.
#pragma once
#include "common/types.cuh"

#ifndef HOST_EMULATION
// 2^x, subnormal results flushed.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x, subnormal results flushed.
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two binary16, nearest even.
__device__ __forceinline__ u32 pack_halves(float low, float high) {
    u32 halves;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(high), "f"(low));
    return halves;
}
#endif
