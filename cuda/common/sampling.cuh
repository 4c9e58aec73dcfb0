// The arithmetic of token choice, bit for bit as backends/core/src/sampling: one subtraction and one product in binary32,
// the rest in integers. No multiply-add may be contracted here, hence the explicit intrinsics.
#pragma once
#include "common/types.cuh"

// `PreparedRow` of the host.
struct PreparedRow {
    float scale;
    float penalty;
    float inverse_penalty;
    u32 min_weight;
    u32 top_k;
    u32 top_p_low;
    u32 top_p_high;
    u32 random_low;
    u32 random_high;
    u32 padding[3];
};
static_assert(sizeof(PreparedRow) == 48, "the host packs 48 bytes a row");

// floor(2^31 * 2^-y) up to two units; 0 from y = 32 on and for NaN, exactly 2^31 at 0.
__device__ __forceinline__ u32 exp_weight(float y) {
    if (!(y < 32.0f)) return 0;
    const u32 fixed = __float2uint_rz(__fmul_rn(y, 67108864.0f));
    const u32 fraction = fixed << 6;
    u32 tail = 46516u;
    tail = 633126u - __umulhi(tail, fraction);
    tail = 5704530u - __umulhi(tail, fraction);
    tail = 41300355u - __umulhi(tail, fraction);
    tail = 238386455u - __umulhi(tail, fraction);
    tail = 1031764842u - __umulhi(tail, fraction);
    tail = 2977044470u - __umulhi(tail, fraction);
    return (0x80000000u - (__umulhi(tail, fraction) >> 1)) >> (fixed >> 26);
}

// Orders as the logits do, as an unsigned integer; both zeros are equal.
__device__ __forceinline__ u32 ordered_key(float logit) {
    const u32 bits = logit == 0.0f ? 0u : __float_as_uint(logit);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Larger is earlier; among equals the lower id.
__device__ __forceinline__ u64 ranked(u32 rank, u32 id) { return (u64)rank << 32 | (u32)~id; }

// Maximum over a CTA of 64-bit keys; every thread gets it. `partials`: shared, 32 entries. Ends with a barrier.
template <int THREADS>
__device__ __forceinline__ u64 cta_max(u64 value, u64* partials) {
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) {
        const u64 other = __shfl_xor_sync(0xffffffffu, value, distance);
        value = other > value ? other : value;
    }
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = value;
    __syncthreads();
    u64 largest = 0;
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; ++warp) largest = partials[warp] > largest ? partials[warp] : largest;
    __syncthreads();
    return largest;
}

// Sum over a warp of 64-bit integers; every lane gets it.
__device__ __forceinline__ u64 warp_sum_u64(u64 value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance >>= 1) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}
