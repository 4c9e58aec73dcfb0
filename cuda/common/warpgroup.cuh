// Tensor-core products of a warpgroup (four warps) on 9.0a and barriers in shared memory, as inline PTX.
//
// A: 64 rows x 32 signed bytes, 16 rows from each warp's registers as mma.cuh has them; B: 16, 32, 48 or 64 columns x 32 bytes
// in shared memory as core matrices of 8 columns x 16 bytes: [column / 8][k / 16][column % 8][k % 16], the next eight columns
// OPERAND_STRIDE bytes further. The sums come as those of mma's, side by side: [4n + c] is c of columns 8n..
#pragma once
#include "common/mma.cuh"

// From eight columns to the next.
#define OPERAND_STRIDE 512

#ifndef HOST_EMULATION
// Operand B for the tensor cores: the half of its descriptor that holds the address, in units of 16 bytes.
__device__ __forceinline__ u32 shared_operand(const void* shared) { return (u32)__cvta_generic_to_shared(shared) >> 4; }

// What this thread has written to registers is there for the products that follow.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// d = A B, or d += A B with KEEP, begun. The descriptor's other parts: distance of core matrices along k and along columns, in
// units of 16 bytes; no swizzle.
template <bool KEEP>
__device__ __forceinline__ void products_add(i32 (&d)[8], u32 a0, u32 a1, u32 a2, u32 a3, u32 b) {
    asm volatile(
        "{.reg .pred keep; .reg .b64 operand; setp.ne.b32 keep, %14, 0; mov.b64 operand, {%12, %13};\n"
        "wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7"
        "}, {%8,%9,%10,%11}, operand, keep;}"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b | 128 / 16 << 16), "n"(OPERAND_STRIDE / 16), "n"(KEEP));
}

template <bool KEEP>
__device__ __forceinline__ void products_add(i32 (&d)[16], u32 a0, u32 a1, u32 a2, u32 a3, u32 b) {
    asm volatile(
        "{.reg .pred keep; .reg .b64 operand; setp.ne.b32 keep, %22, 0; mov.b64 operand, {%20, %21};\n"
        "wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
        "}, {%16,%17,%18,%19}, operand, keep;}"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]), "+r"(d[8]),
          "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b | 128 / 16 << 16), "n"(OPERAND_STRIDE / 16), "n"(KEEP));
}

template <bool KEEP>
__device__ __forceinline__ void products_add(i32 (&d)[24], u32 a0, u32 a1, u32 a2, u32 a3, u32 b) {
    asm volatile(
        "{.reg .pred keep; .reg .b64 operand; setp.ne.b32 keep, %30, 0; mov.b64 operand, {%28, %29};\n"
        "wgmma.mma_async.sync.aligned.m64n48k32.s32.s8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23"
        "}, {%24,%25,%26,%27}, operand, keep;}"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]), "+r"(d[8]),
          "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]),
          "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b | 128 / 16 << 16), "n"(OPERAND_STRIDE / 16), "n"(KEEP));
}

template <bool KEEP>
__device__ __forceinline__ void products_add(i32 (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u32 b) {
    asm volatile(
        "{.reg .pred keep; .reg .b64 operand; setp.ne.b32 keep, %38, 0; mov.b64 operand, {%36, %37};\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
        "%25,%26,%27,%28,%29,%30,%31"
        "}, {%32,%33,%34,%35}, operand, keep;}"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]), "+r"(d[8]),
          "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]),
          "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]),
          "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b | 128 / 16 << 16), "n"(OPERAND_STRIDE / 16), "n"(KEEP));
}

// Closes the group of products begun since the last call.
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING groups of products are unfinished; the sums of the finished ones are in `d`.
template <int PENDING, int N>
__device__ __forceinline__ void products_wait(i32 (&d)[N]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    // No reader of the sums moves before the wait.
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// A warpgroup gives registers back, or takes what others gave: REGISTERS of each thread from here on, a multiple of 8.
template <int REGISTERS>
__device__ __forceinline__ void release_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void claim_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// What was copied to shared memory, and is seen by this thread, is there for the products that follow.
__device__ __forceinline__ void publish_operands() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Copies 4, 8 or 16 bytes to shared memory behind the caller's back.
template <int BYTES>
__device__ __forceinline__ void copy_bytes_async(void* shared, const void* source) {
    const u32 target = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(target), "l"(source), "n"(BYTES) : "memory");
}

// A barrier in shared memory: phases 0, 1, 0.. end when `count` threads have arrived.
struct alignas(8) PhaseBarrier {
    u64 state;

    __device__ __forceinline__ u32 address() const { return (u32)__cvta_generic_to_shared(this); }

    __device__ __forceinline__ void open(u32 count) {
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address()), "r"(count) : "memory");
    }

    // Before the memory is opened again.
    __device__ __forceinline__ void close() { asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(address()) : "memory"); }

    __device__ __forceinline__ void arrive() {
        asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(address()) : "memory");
    }

    // Waits for the end of a phase of this parity, unless the phase after it is running.
    __device__ __forceinline__ void wait(u32 parity) {
        asm volatile(
            "{.reg .pred ended;\n"
            "again: mbarrier.try_wait.parity.shared.b64 ended, [%0], %1;\n"
            "@!ended bra again;}" ::"r"(address()),
            "r"(parity)
            : "memory");
    }
};
#endif
