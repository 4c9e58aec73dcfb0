// The gated activations of a feed-forward block; formulas in swiglu.cu.
#pragma once
#include "common/approximate.cuh"

// To some 2^-21 of itself for arguments that matter, the same bits in every kernel.
__device__ __forceinline__ float sigmoid(float x) {
    return reciprocal_approx(1.0f + exp2_approx(x * -1.442695040888963f));
}

// kind 0: silu; kind 1: clamped. A NaN passes through the clamps, so that it is seen.
__device__ __forceinline__ float gated(u32 kind, float alpha, float limit, float gate, float up) {
    if (kind == 0) return gate * sigmoid(gate) * up;
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : (up < -limit ? -limit : up);
    return (up + 1.0f) * gate * sigmoid(alpha * gate);
}
