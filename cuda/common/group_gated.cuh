// Gate, up and the activation between them on warpgroups (common/group_product.cuh): both products in one CTA, whose sums meet in
// shared memory.
#pragma once
#include "common/gated.cuh"
#include "common/group_product.cuh"
#include "common/quantize.cuh"

// Two weights of one shape and the gated activation between them.
struct GatedProduct {
    Weight gate;
    Weight up;
    const float* gate_bias;  // [experts, outputs] or null
    const float* up_bias;
    u8* codes;  // records for warpgroups
    ActivationSums* sums;
    u32 kind;
    float alpha;
    float limit;
    u32 use;  // a RecordUse
};

// Up to 3 row tiles of both weights from `tile` on, of which there are `row_tiles`; an expert's begin at `expert_tile`. Warps 0
// to 5 multiply with the gate, 6 to 11 with the other weight.
struct GatedRows {
    static constexpr u32 TILES = GROUP_TILES / 2;
    u64 expert_tile;
    u32 tile;
    u32 row_tiles;

    template <int FORMAT>
    __device__ __forceinline__ TilePlanes planes(const GatedProduct& product, u32 index) const {
        const u32 own = index % TILES < row_tiles ? index % TILES : 0;
        return tile_planes<FORMAT>(index < TILES ? product.gate : product.up, expert_tile + tile + own);
    }

    // A CTA's records, before they go where they belong; columns are in different banks.
    typedef u8 Made[GROUP_COLUMNS][TILES * ACTIVATION_CODE_BYTES + 16];

    // They take the place of the stages.
    template <int FORMAT>
    __device__ __forceinline__ static Made& made(GroupShared<FORMAT>& shared) {
        static_assert(sizeof(Made) <= sizeof(shared.stages), "there is room");
        return *(Made*)shared.stages;
    }

    // swiglu of the sums, as activation records: a row tile is a block, each thread that multiplied makes one record.
    // `record_of(column)`: row of the records of a column. The activated values take the place of the gate's sums.
    template <int FORMAT, class RecordOf>
    __device__ __forceinline__ void make_records(const GatedProduct& product, GroupShared<FORMAT>& shared, u32 live,
                                                 const RecordOf& record_of) const {
        constexpr float POST = GroupPost<FORMAT>::VALUE;
        const u32 column = threadIdx.x % GROUP_COLUMNS;
        const u32 block = threadIdx.x / GROUP_COLUMNS;
        // Whole warps without a column leave.
        if (column - threadIdx.x % 32 >= live || block >= row_tiles) return;
        const u64 own = (expert_tile + tile + block) * 32 + threadIdx.x % 32;
        const float gate_bias = product.gate_bias ? product.gate_bias[own] : 0.0f;
        const float up_bias = product.up_bias ? product.up_bias[own] : 0.0f;
        // Rows g + 16 n are thread 4 g of 32 n's, and so on.
        FourSums* sums = &shared.totals[column / 8][64 * block + column % 8 / 2];
        u32 magnitude = 0;
#pragma unroll 1
        for (u32 eight = 0; eight < 4; ++eight) {
            float* gates = sums[eight / 2 * 32].at + eight % 2 * 2 + column % 2;
            const float* ups = gates + 64 * TILES * 4;
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                const float gate = gates[16 * i] * POST + __shfl_sync(0xffffffffu, gate_bias, 8 * eight + i);
                const float up = ups[16 * i] * POST + __shfl_sync(0xffffffffu, up_bias, 8 * eight + i);
                const float y = gated(product.kind, product.alpha, product.limit, gate, up);
                const u32 bits = __float_as_uint(y) & 0x7fffffffu;
                magnitude = bits > magnitude ? bits : magnitude;
                gates[16 * i] = y;
            }
        }
        if (column >= live) return;
        const auto element = [&](u32 row) { return sums[row / 16 * 32 + row % 8 * 4].at[row / 8 % 2 * 2 + column % 2]; };
        RecordPlace place(product.codes, product.sums, record_of(column), product.gate.row_tiles, tile + block, product.use);
        place.codes = made(shared)[column] + block * ACTIVATION_CODE_BYTES;
        quantize_alone(magnitude, element, place);
    }

    // Copies their codes to where they belong: a column's lie one behind the other. All threads of the CTA call it.
    template <int FORMAT, class RecordOf>
    __device__ __forceinline__ void store_records(const GatedProduct& product, GroupShared<FORMAT>& shared, u32 live,
                                                  const RecordOf& record_of) const {
        const u32 parts = (row_tiles < TILES ? row_tiles : TILES) * (ACTIVATION_CODE_BYTES / 16);
        for (u32 index = threadIdx.x; index < live * parts; index += GROUP_THREADS) {
            const u32 column = index / parts;
            const u32 part = index % parts * 16;
            const u64 record = (u64)record_of(column) * product.gate.row_tiles + tile;
            *(Words4*)(product.codes + record * ACTIVATION_CODE_BYTES + part) = *(const Words4*)(made(shared)[column] + part);
        }
    }
};
