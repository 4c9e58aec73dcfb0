// The last CTA of a group goes on alone with what all of them wrote: saves a launch.
#pragma once
#include "common/types.cuh"

// Whether this CTA is the last of `expected` to come here; if so, it sees what the others wrote before they came. All
// threads call it. `arrivals` is zero before and, once all have come, zero again.
__device__ __forceinline__ bool arrives_last(u32* arrivals, u32 expected) {
    __shared__ u32 is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(arrivals, 1u) == expected - 1;
        if (is_last) *arrivals = 0;
    }
    __syncthreads();
    if (is_last) __threadfence();
    return is_last;
}
