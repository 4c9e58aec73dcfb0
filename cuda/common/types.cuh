// Names, sizes and the few instructions every kernel uses. No CUDA header is included anywhere: NVRTC has none built
// in, and finding them on a user's machine is one more thing that can go wrong.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;

// 16 bytes as four floats.
struct alignas(16) Floats4 {
    float at[4];
};

#ifndef HOST_EMULATION
// Asserts that a kernel's parameter structure has the size that the host declares for it in its kernel table.
// The host passes -DARGS_BYTES_<kernel>=<size>.
#define CHECK_ARGS(kernel, Args) \
    static_assert(sizeof(Args) == ARGS_BYTES_##kernel, #kernel ": host and device disagree on the arguments' size")

// A kernel with one parameter, passed by value and never copied to local memory. After the parameter's type come the
// launch bounds: threads per CTA and, if wanted, the least number of CTAs per multiprocessor.
#define KERNEL(name, Args, ...)  \
    CHECK_ARGS(name, Args);      \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Args args)
#endif

#define INFINITY_F32 __int_as_float(0x7f800000)
#define NAN_F32 __int_as_float(0x7fc00000)

#ifndef HOST_EMULATION
// Waits until everything the preceding kernel wrote is visible. Under programmatic dependent launch a kernel may start
// early; every kernel calls this before it reads or writes anything another kernel of the plan touches, in every
// thread, so that the end of one kernel implies the end of all before it.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the plan start its own prologue. Its memory reads still wait for this kernel's end.
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// binary16 -> binary32, exact.
__device__ __forceinline__ float half_to_float(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// binary32 -> binary16, nearest even; values beyond the range become infinite.
__device__ __forceinline__ u16 float_to_half(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

// bfloat16 -> binary32, exact.
__device__ __forceinline__ float bfloat_to_float(u16 bits) {
    return __uint_as_float((u32)bits << 16);
}
