// Tensor-core products of one warp, as inline PTX. Operand A has 16 rows, B has 8 columns; lane = 4g + t.
//
// s8, k32:  a[0] row g, k 4t..4t+3;  a[1] row g+8, same k;  a[2], a[3] the same rows, k 16+4t..;
//           b[0] column g, k 4t..4t+3;  b[1] k 16+4t..;  c[0], c[1] row g, columns 2t, 2t+1;  c[2], c[3] row g+8
// s8, k16:  a[0], a[1] and b[0] of the above
// f16, k16: a[0] row g, k 2t,2t+1;  a[1] row g+8;  a[2], a[3] the same rows, k 2t+8,2t+9;  b[0] column g, k 2t,2t+1;
//           b[1] k 2t+8,2t+9;  c as above
#pragma once
#include "common/types.cuh"

#ifndef HOST_EMULATION
__device__ __forceinline__ void mma_s8_k32(i32 (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_s8_k16(i32 (&c)[4], u32 a0, u32 a1, u32 b0) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

__device__ __forceinline__ void mma_f16_k16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of halves from shared memory, transposed: lane 8i + j gives the address of row j of matrix i, and gets
// of each matrix rows 2t, 2t + 1 of column g.
__device__ __forceinline__ void load_transposed(u32 (&out)[4], const void* row) {
    const u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

// Byte permutation: nibble i of `selector` picks byte i of the result from {high, low}; bit 3 replicates a sign.
__device__ __forceinline__ u32 permute_bytes(u32 low, u32 high, u32 selector) {
    u32 result;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
    return result;
}
#endif
