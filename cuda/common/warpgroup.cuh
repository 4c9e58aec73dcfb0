// Tensor-core products of a warpgroup (four warps) on 9.0a and barriers in shared memory, as inline PTX.
//
// A: 64 rows x 16 of binary16, 16 rows from each warp's registers as mma.cuh has them; B: 32, 64, 96 or 128 columns x 16 in
// shared memory: 128 bytes of each column, one column behind the other from a multiple of 1,024 on, their sixteen bytes j at
// place j ^ (column % 8). So what lies in a row in memory may be copied in a row. The sums come as those of mma's, side by side:
// [4n + c] is c of columns 8n..
#pragma once
#include "common/mma.cuh"

// Bytes of a column.
#define OPERAND_STRIDE 128

#ifndef HOST_EMULATION
// Operand B for the tensor cores: the half of its descriptor that holds the address, in units of 16 bytes; the next 16 of a
// column's binary16 are two units further.
__device__ __forceinline__ u32 shared_operand(const void* shared) { return (u32)__cvta_generic_to_shared(shared) >> 4; }

// The other half: eight columns are that far from the next eight, in units of 16 bytes, and swizzled by 128 bytes.
#define OPERAND_LAYOUT (8 * OPERAND_STRIDE / 16 + (1 << 30))

// What this thread has written to registers is there for the products that follow.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// d = A B, or d += A B with KEEP, begun.
template <bool KEEP>
__device__ __forceinline__ void products_add(float (&d)[16], const u32* a, u32 b) {
    asm volatile(
        "{.reg .pred keep; .reg .b64 operand; setp.ne.b32 keep, %22, 0; mov.b64 operand, {%20, %21};\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
        "}, {%16,%17,%18,%19}, operand, keep, 1, 1, 0;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(OPERAND_LAYOUT), "n"(KEEP));
}

template <bool KEEP>
__device__ __forceinline__ void products_add(float (&d)[32], const u32* a, u32 b) {
    asm volatile(
        "{.reg .pred keep; .reg .b64 operand; setp.ne.b32 keep, %38, 0; mov.b64 operand, {%36, %37};\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
        "%25,%26,%27,%28,%29,%30,%31"
        "}, {%32,%33,%34,%35}, operand, keep, 1, 1, 0;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
          "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]),
          "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(OPERAND_LAYOUT), "n"(KEEP));
}

template <bool KEEP>
__device__ __forceinline__ void products_add(float (&d)[48], const u32* a, u32 b) {
    asm volatile(
        "{.reg .pred keep; .reg .b64 operand; setp.ne.b32 keep, %54, 0; mov.b64 operand, {%52, %53};\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
        "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
        "}, {%48,%49,%50,%51}, operand, keep, 1, 1, 0;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
          "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]),
          "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]),
          "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(OPERAND_LAYOUT), "n"(KEEP));
}

template <bool KEEP>
__device__ __forceinline__ void products_add(float (&d)[64], const u32* a, u32 b) {
    asm volatile(
        "{.reg .pred keep; .reg .b64 operand; setp.ne.b32 keep, %70, 0; mov.b64 operand, {%68, %69};\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
        "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
        "}, {%64,%65,%66,%67}, operand, keep, 1, 1, 0;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
          "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]),
          "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]),
          "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
          "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
          "+f"(d[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(OPERAND_LAYOUT), "n"(KEEP));
}

// Closes the group of products begun since the last call.
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING groups of products are unfinished; the sums of the finished ones are in `d`.
template <int PENDING, int N>
__device__ __forceinline__ void products_wait(float (&d)[N]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    // No reader of the sums moves before the wait.
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Of two binary16 each: a - b, a b.
__device__ __forceinline__ u32 subtract_halves(u32 a, u32 b) {
    u32 difference;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
    return difference;
}

__device__ __forceinline__ u32 multiply_halves(u32 a, u32 b) {
    u32 product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
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

    // Arrives as soon as all copies have ended that this thread has begun.
    __device__ __forceinline__ void arrive_behind_copies() {
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(address()) : "memory");
    }

    // The phase that runs ends only when `bytes` more have come by bulk copies.
    __device__ __forceinline__ void expect(u32 bytes) {
        asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
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

// Copies to shared memory without any thread, which `full` waits for. Addresses and size are multiples of 16.
__device__ __forceinline__ void copy_bulk(void* shared, const void* source, u32 bytes, PhaseBarrier& full) {
    const u32 target = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
                 "l"(__cvta_generic_to_global(source)), "r"(bytes), "r"(full.address())
                 : "memory");
}
#endif
