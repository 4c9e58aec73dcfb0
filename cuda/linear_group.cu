// linear for prefill on 9.0a: y[t][o] = sum_i weight[o][i] x[t][i] + bias[o] (+ residual[t][o]), weight in any quantised
// format, for up to three weights of one format at once; and swiglu(Wg x + bg, Wu x + bu) as activation records.
//
// x: activation records for warpgroups; weight: tiles (common/weight.cuh); y: [rows of the set, outputs] f32;
// codes, sums: [rows of the set, outputs / 32] such records.
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for each kernel. 512 threads, GroupShared of shared
// memory, grid y: ceil(most columns / per_cta).
//   product: grid x: ceil(row tiles / 6) of each weight, one after the other.
//   gated:   grid x: ceil(row tiles / 3). A row tile is a block of the records.
// Bound as group_product.cuh says. The bits are those of linear.cu, swiglu.cu and linear_quantize.cu.
#include "common/group_gated.cuh"

struct LinearGroupPart {
    Weight weight;
    const float* bias;      // [outputs] or null
    const float* residual;  // as y, or null; may be y itself
    float* y;
    u32 outputs;
    u32 end;  // of its CTAs along x
};

struct LinearGroupArgs {
    Activations x;
    const u32* columns;  // live rows of the set
    u32 per_cta;         // columns: at most GROUP_COLUMNS
    u32 reserved;
    LinearGroupPart parts[3];
};

// One group of columns, from `first` on, if there are so many.
__device__ __forceinline__ ColumnGroups columns_of(u32 columns, u32 first, u32 per_cta) {
    return {first, columns, columns, per_cta};
}

KERNEL(LINEAR_GROUP, LinearGroupArgs, GROUP_THREADS, 1) {
    DYNAMIC_SHARED(GroupMemory, memory);
    GroupShared<WEIGHT_FORMAT>& shared = *(GroupShared<WEIGHT_FORMAT>*)memory;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 first = blockIdx.y * args.per_cta;
    const u32 index = (blockIdx.x >= args.parts[0].end) + (blockIdx.x >= args.parts[1].end);
    const LinearGroupPart& part = args.parts[index];
    const u32 tile = (blockIdx.x - (index == 0 ? 0 : args.parts[index - 1].end)) * GROUP_TILES;
    const GroupRows rows = {part.weight.row_tiles - tile};
    group_products<WEIGHT_FORMAT>(
        part.weight.blocks, args.x, columns_of(*args.columns, first, args.per_cta), rows.active(), shared,
        [&](u32 own) { return tile_planes<WEIGHT_FORMAT>(part.weight, tile + rows.existing(own)); },
        [&](u32 column, u32) { return column; },
        [&](u32, u32 live) {
            const u32 output = tile * 32 + rows.own_row();
            const OutputRow own[2] = {{part.y, part.residual, part.bias, output, part.outputs},
                                      {part.y, part.residual, part.bias, output + 8, part.outputs}};
            rows.store_sums(shared, live, part.outputs, own, [&](u32 column) { return first + column; });
        },
        [](u32, u32) {});
}

struct LinearGroupGatedArgs {
    Activations x;
    const u32* columns;
    u32 per_cta;
    u32 reserved;
    GatedProduct product;
};

KERNEL(LINEAR_GROUP_GATED, LinearGroupGatedArgs, GROUP_THREADS, 1) {
    DYNAMIC_SHARED(GroupMemory, memory);
    GroupShared<WEIGHT_FORMAT>& shared = *(GroupShared<WEIGHT_FORMAT>*)memory;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 first = blockIdx.y * args.per_cta;
    const u32 tile = blockIdx.x * GatedRows::TILES;
    const GatedRows rows = {0, tile, args.product.gate.row_tiles - tile};
    const auto record_of = [&](u32 column) { return first + column; };
    group_products<WEIGHT_FORMAT>(
        args.product.gate.blocks, args.x, columns_of(*args.columns, first, args.per_cta), true, shared,
        [&](u32 own) { return rows.planes<WEIGHT_FORMAT>(args.product, own); }, [&](u32 column, u32) { return column; },
        [&](u32, u32 live) { rows.make_records(args.product, shared, live, record_of); },
        [&](u32, u32 live) { rows.store_records(args.product, shared, live, record_of); });
}
