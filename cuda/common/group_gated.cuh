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

    // They take the place of the activations.
    template <int FORMAT>
    __device__ __forceinline__ static Made& made(GroupShared<FORMAT>& shared) {
        static_assert(sizeof(Made) <= sizeof(shared.codes), "there is room");
        return *(Made*)shared.codes;
    }

    // swiglu of the sums, as activation records: a row tile is a block. Two lanes, 16 apart, make the records of two columns, 16
    // apart, each from rows 8 upper .. 8 upper + 7 of either half: so that all lanes read from different banks.
    // `record_of(column)`: row of the records of a column.
    template <int FORMAT, class RecordOf>
    __device__ __forceinline__ void make_records(const GatedProduct& product, GroupShared<FORMAT>& shared, u32 live,
                                                 const RecordOf& record_of) const {
        constexpr float POST = GroupPost<FORMAT>::VALUE;
        constexpr u32 SIXTEEN = 2 * 4 * (GROUP_CONSUMERS + 4);  // columns further
        const u32 lane = threadIdx.x % 32;
        const u32 upper = lane / 16;
        const u32 column = threadIdx.x % GROUP_COLUMNS - lane + lane % 16;
        const u32 block = threadIdx.x / GROUP_COLUMNS;
        // Whole warps without a column leave.
        if (column - lane % 16 >= live || block >= row_tiles) return;
        const u64 own = (expert_tile + tile + block) * 32 + lane;
        const float gate_bias = product.gate_bias ? product.gate_bias[own] : 0.0f;
        const float up_bias = product.up_bias ? product.up_bias[own] : 0.0f;
        // Rows g + 16 n are thread 4 g of 32 n's, and so on.
        const float* gates = shared.totals[column / 8][64 * block + column % 8 / 2].at + 2 * upper + column % 2;
        const float* ups = gates + 64 * TILES * 4;
        float y[2][16];
        u32 magnitudes[2] = {0, 0};
#pragma unroll
        for (u32 i = 0; i < 16; ++i) {
            const u32 row = i / 8 * 16 + i % 8 + 8 * upper;
            const u32 at = i / 8 * 32 * 4 + i % 8 * 16;
            const float gate_own = __shfl_sync(0xffffffffu, gate_bias, row);
            const float up_own = __shfl_sync(0xffffffffu, up_bias, row);
#pragma unroll
            for (u32 j = 0; j < 2; ++j) {
                const float gate = gates[at + j * SIXTEEN] * POST + gate_own;
                const float up = ups[at + j * SIXTEEN] * POST + up_own;
                y[j][i] = gated(product.kind, product.alpha, product.limit, gate, up);
                const u32 bits = __float_as_uint(y[j][i]) & 0x7fffffffu;
                magnitudes[j] = bits > magnitudes[j] ? bits : magnitudes[j];
            }
        }
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
            const u32 at = column + 16 * j;
            const bool exists = at < live;
            RecordPlace place(product.codes, product.sums, exists ? record_of(at) : 0, product.gate.row_tiles, tile + block,
                              product.use);
            place.codes = made(shared)[at] + block * ACTIVATION_CODE_BYTES;
            quantize_by_two(y[j], magnitudes[j], upper, exists, upper == j, place);
        }
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
