// Tensor-core products of a warpgroup (four warps) on 9.0a, as inline PTX.
//
// A: 64 rows x 32 signed bytes, 16 rows from each warp's registers as mma.cuh has them; B: 32 columns x 32 bytes in
// shared memory as core matrices of 8 columns x 16 bytes: [column / 8][k / 16][column % 8][k % 16], the next eight columns
// OPERAND_STRIDE bytes further. The sums come as four of mma's: [4n + c] is c of columns 8n...
#pragma once
#include "common/mma.cuh"

// From eight columns to the next.
#define OPERAND_STRIDE 512

#ifndef HOST_EMULATION
// Operand B for the tensor cores; `offset` bytes further is offset / 16 more.
__device__ __forceinline__ u32 shared_operand(const void* shared) { return (u32)__cvta_generic_to_shared(shared) >> 4; }

// What this thread has written to registers is there for the products that follow.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// d = A B, begun. The descriptor: address, distance of core matrices along k and along columns in units of 16 bytes; no
// swizzle.
__device__ __forceinline__ void products_add(i32 (&d)[16], u32 a0, u32 a1, u32 a2, u32 a3, u32 b) {
    asm volatile(
        "{.reg .pred keep; .reg .b64 operand; .reg .b32 low; setp.ne.b32 keep, 0, 0;\n"
        "or.b32 low, %20, %21; mov.b64 operand, {low, %22};\n"
        "wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, operand, keep;}"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]), "+r"(d[8]),
          "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b), "n"(128 / 16 << 16), "n"(OPERAND_STRIDE / 16));
}

// Closes the group of products begun since the last call.
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING groups are unfinished; `high` and `low` are of one that is finished then.
template <int PENDING>
__device__ __forceinline__ void products_wait(i32 (&high)[16], i32 (&low)[16]) {
    asm volatile("wgmma.wait_group.sync.aligned %32;"
                 : "+r"(high[0]), "+r"(high[1]), "+r"(high[2]), "+r"(high[3]), "+r"(high[4]), "+r"(high[5]), "+r"(high[6]), "+r"(high[7]), "+r"(high[8]), "+r"(high[9]), "+r"(high[10]), "+r"(high[11]), "+r"(high[12]), "+r"(high[13]), "+r"(high[14]), "+r"(high[15]),
                   "+r"(low[0]), "+r"(low[1]), "+r"(low[2]), "+r"(low[3]), "+r"(low[4]), "+r"(low[5]), "+r"(low[6]), "+r"(low[7]), "+r"(low[8]), "+r"(low[9]), "+r"(low[10]), "+r"(low[11]), "+r"(low[12]), "+r"(low[13]), "+r"(low[14]), "+r"(low[15])
                 : "n"(PENDING)
                 : "memory");
}

// What this thread has copied to shared memory is there for the tensor cores, after the next barrier.
__device__ __forceinline__ void publish_operands() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Copies 4 bytes to shared memory behind the caller's back.
__device__ __forceinline__ void copy_word_async(void* shared, const void* source) {
    const u32 target = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(target), "l"(source) : "memory");
}
#endif
