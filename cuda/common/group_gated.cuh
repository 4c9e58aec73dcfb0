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
    u8* codes;  // records, high and low bytes apart
    ActivationSums* sums;
    u32 kind;
    float alpha;
    float limit;
    u32 reserved;
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

    // swiglu of the sums, as activation records: a row tile is a block, each thread makes one record. `record_of(column)`: row
    // of the records of a column.
    template <int FORMAT, class RecordOf>
    __device__ __forceinline__ void make_records(const GatedProduct& product, const GroupShared<FORMAT>& shared, u32 live,
                                                 const RecordOf& record_of) const {
        const u32 column = threadIdx.x % GROUP_COLUMNS;
        const u32 block = threadIdx.x / GROUP_COLUMNS;
        if (column >= live || block >= row_tiles) return;
        float y[32];
#pragma unroll 8
        for (u32 row = 0; row < 32; ++row) {
            const u32 thread = (2 * block + row / 16) * 32 + row % 8 * 4 + column % 8 / 2;
            const u32 c = row / 8 % 2 * 2 + column % 2;
            float gate = shared.totals[column / 8][thread].at[c] * Codec<FORMAT>::POST;
            float up = shared.totals[column / 8][thread + 64 * TILES].at[c] * Codec<FORMAT>::POST;
            const u64 output = (expert_tile + tile + block) * 32 + row;
            if (product.gate_bias) gate += product.gate_bias[output];
            if (product.up_bias) up += product.up_bias[output];
            y[row] = gated(product.kind, product.alpha, product.limit, gate, up);
        }
        const u64 record = (u64)record_of(column) * product.gate.row_tiles + tile + block;
        quantize_alone(y, product.codes + record * ACTIVATION_CODE_BYTES, product.sums + record);
    }
};
