// Loads that bypass registers or caches, as inline PTX.
#pragma once
#include "common/types.cuh"

// 16 bytes as four words.
struct alignas(16) Words4 {
    u32 x, y, z, w;
};

// 8 bytes as two words.
struct alignas(8) Words2 {
    u32 x, y;
};

#ifndef HOST_EMULATION
// The CTA's dynamic shared memory.
#define DYNAMIC_SHARED(T, name) extern __shared__ T name[]

// Weights are read once per step: they should not push activations out of L1. Volatile, so that loads stay where the
// kernel issues them: ahead of use, many in flight.
__device__ __forceinline__ Words4 load_stream(const Words4* address) {
    Words4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(address));
    return v;
}

__device__ __forceinline__ Words2 load_stream(const Words2* address) {
    Words2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    return v;
}

__device__ __forceinline__ u32 load_stream(const u32* address) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(address));
    return v;
}

__device__ __forceinline__ u16 load_stream(const u16* address) {
    u16 v;
    asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(v) : "l"(address));
    return v;
}

// What other CTAs of this launch have written: read past L1.
__device__ __forceinline__ float load_fresh(const float* address) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(address) : "memory");
    return v;
}

// The same, two words at a time, and of the CTA's own shared memory too.
__device__ __forceinline__ Words2 load_anywhere(const Words2* address) {
    Words2 v;
    asm volatile("ld.relaxed.gpu.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address) : "memory");
    return v;
}

__device__ __forceinline__ float load_anywhere(const float* address) {
    float v;
    asm volatile("ld.relaxed.gpu.f32 %0, [%1];" : "=f"(v) : "l"(address) : "memory");
    return v;
}

// Cached loads that stay where the kernel issues them.
__device__ __forceinline__ Words4 load_ahead(const Words4* address) {
    Words4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address) : "memory");
    return v;
}

__device__ __forceinline__ Words2 load_ahead(const Words2* address) {
    Words2 v;
    asm volatile("ld.global.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address) : "memory");
    return v;
}

__device__ __forceinline__ u32 load_ahead(const u32* address) {
    u32 v;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(address) : "memory");
    return v;
}

// The same value, which the compiler keeps in a register and does not make again wherever it is used.
__device__ __forceinline__ u32 kept(u32 value) {
    asm volatile("" : "+r"(value));
    return value;
}

// A place in shared memory as copies name it.
typedef u32 SharedAddress;
__device__ __forceinline__ SharedAddress shared_address(void* shared) { return (u32)__cvta_generic_to_shared(shared); }

// What is read once leaves L2 first, so that code, keys and activations stay.
typedef u64 CachePolicy;
__device__ __forceinline__ CachePolicy read_once() {
    CachePolicy policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Copies 16 bytes from FROM behind `source` to TO behind `target`, behind the caller's back.
template <u32 TO, u32 FROM>
__device__ __forceinline__ void copy_async_at(SharedAddress target, const void* source, CachePolicy policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0 + %2], [%1 + %3], 16, %4;" ::"r"(target), "l"(source), "n"(TO),
                 "n"(FROM), "l"(policy)
                 : "memory");
}

// Copies 16 bytes to shared memory behind the caller's back; zeros when `valid` is false (`source` is then not read).
__device__ __forceinline__ void copy_async(void* shared, const void* source, bool valid) {
    const u32 target = (u32)__cvta_generic_to_shared(shared);
    const u32 bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copy_async(SharedAddress target, const void* source, bool valid) {
    const u32 bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copy_async(SharedAddress target, const void* source) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
}

// Closes the group of copies issued since the last call.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `PENDING` of this thread's groups are unfinished.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
#endif
