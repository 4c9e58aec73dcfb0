// linear for prefill on 9.0a: y[t][o] = sum_i weight[o][i] x[t][i] + bias[o] (+ residual[t][o]), weight in any quantised
// format, for up to three weights of one format at once; and swiglu(Wg x + bg, Wu x + bu) as activation records.
//
// x: activation records, high and low bytes apart; weight: tiles (common/weight.cuh); y: [rows of the set, outputs] f32;
// codes, sums: [rows of the set, outputs / 32] records, apart again.
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for each kernel. 384 threads, GroupShared of shared
// memory, grid y: ceil(most columns / per_cta).
//   product: grid x: ceil(row tiles / 6) of each weight, one after the other.
//   gated:   grid x: ceil(row tiles / 3). A row tile is a block of the records.
// Bound by the scaling. The bits are those of linear.cu, swiglu.cu and linear_quantize.cu.
#include "common/group_product.cuh"

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

// Columns of this CTA from `first` on; fills `shared.rows`.
template <int FORMAT>
__device__ __forceinline__ u32 open_columns(GroupShared<FORMAT>& shared, u32 first, u32 columns, u32 per_cta) {
    const u32 live = columns - first < per_cta ? columns - first : per_cta;
    if (threadIdx.x < GROUP_COLUMNS) shared.rows[threadIdx.x] = first + (threadIdx.x < live ? threadIdx.x : 0);
    __syncthreads();
    return live;
}

KERNEL(LINEAR_GROUP, LinearGroupArgs, GROUP_THREADS, 1) {
    DYNAMIC_SHARED(u8, memory);
    GroupShared<WEIGHT_FORMAT>& shared = *(GroupShared<WEIGHT_FORMAT>*)memory;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 columns = *args.columns;
    const u32 first = blockIdx.y * args.per_cta;
    if (first >= columns) return;
    const u32 live = open_columns<WEIGHT_FORMAT>(shared, first, columns, args.per_cta);
    const u32 index = (blockIdx.x >= args.parts[0].end) + (blockIdx.x >= args.parts[1].end);
    const LinearGroupPart& part = args.parts[index];
    const u32 tile = (blockIdx.x - (index == 0 ? 0 : args.parts[index - 1].end)) * GROUP_TILES;
    group_product<WEIGHT_FORMAT>(part.weight, tile, part.weight.row_tiles - tile, args.x, live, shared,
                                 [&](u32 row, u32 column, float sum) {
                                     const u32 output = tile * 32 + row;
                                     if (output >= part.outputs) return;
                                     if (part.bias) sum += part.bias[output];
                                     const u64 place = (u64)(first + column) * part.outputs + output;
                                     if (part.residual) sum += part.residual[place];
                                     part.y[place] = sum;
                                 });
}

struct LinearGroupGatedArgs {
    Activations x;
    const u32* columns;
    u32 per_cta;
    u32 reserved;
    GatedProduct product;
};

KERNEL(LINEAR_GROUP_GATED, LinearGroupGatedArgs, GROUP_THREADS, 1) {
    DYNAMIC_SHARED(u8, memory);
    GroupShared<WEIGHT_FORMAT>& shared = *(GroupShared<WEIGHT_FORMAT>*)memory;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 columns = *args.columns;
    const u32 first = blockIdx.y * args.per_cta;
    if (first >= columns) return;
    const u32 live = open_columns<WEIGHT_FORMAT>(shared, first, columns, args.per_cta);
    const u32 tile = blockIdx.x * (GROUP_TILES / 2);
    gated_product<WEIGHT_FORMAT>(args.product, 0, tile, args.product.gate.row_tiles - tile, args.x, live, shared,
                                 [&](u32 column) { return first + column; });
}
