// moe_linear: y[t][k] = weight[e] x + bias[e] with e = experts[t][k], weight in any quantised format.
//
// x: activations made by linear_quantize, one row per token or per pair; y: [tokens * top_k, outputs] f32.
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for each kernel.
//   pair:        grid (row tiles, most pairs): one pair per CTA, for one token. Reads each chosen expert once.
//   split, 1, 2: grid (row tiles, experts): a CTA finds the pairs of its expert and takes them 8 NT at a time. Each
//                touched expert is read once from memory, again from L2 where it has more pairs; where nearly all are
//                touched, from before the previous kernel has ended on.
//   sweep:       grid (ceil(row tiles / 8), experts, column groups) over pairs sorted by moe_linear_route.
// A pair's result has the same bits in all of them (common/tile.cuh).
#include "common/moe_linear_args.cuh"

// Formats with scales per half block need more than half of the registers.
#define FEW_COLUMNS_CTAS (Codec<WEIGHT_FORMAT>::HALVES ? 1 : 2)

KERNEL(MOE_LINEAR_PAIR, MoeLinearArgs, PRODUCT_THREADS, FEW_COLUMNS_CTAS) {
    __shared__ SplitShared<1> shared;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 pair = blockIdx.y;
    if (pair >= *args.routing.tokens * args.routing.top_k) return;
    const u32 expert = args.routing.experts[pair];
    if (expert >= args.routing.expert_count) return;
    const u64 row_tile = (u64)expert * args.weight.row_tiles + blockIdx.x;
    Window<WEIGHT_FORMAT> window;
    open_slice(window, args.weight, row_tile);
    split_product<WEIGHT_FORMAT, 1>(
        window, args.weight, row_tile, args.x, 1, shared, [&](u32) { return activation_row(args.routing, pair); },
        [&](u32 row, u32 column, float sum) {
            store_output(args, expert, blockIdx.x * 32 + row, column == 0 ? pair : NO_ROW, sum);
        });
}

template <int NT>
__device__ __forceinline__ void moe_split(const MoeLinearArgs& args) {
    __shared__ SplitShared<NT> shared;
    __shared__ ScannedPairs found;
    const u32 expert = blockIdx.y;
    const u64 row_tile = (u64)expert * args.weight.row_tiles + blockIdx.x;
    const u32 tokens = *args.routing.tokens;
    const bool early = wants_nearly_all(args.routing, tokens);
    Window<WEIGHT_FORMAT> window;
    if (early) open_slice(window, args.weight, row_tile);
    wait_for_previous_kernel();
    allow_next_kernel();
    scan_pairs(args.routing, tokens, expert, found);
    for (u32 first = 0; first < found.count; first += 8 * NT) {
        const u32 columns = found.count - first;
        if (first > 0 || !early) open_slice(window, args.weight, row_tile);
        split_product<WEIGHT_FORMAT, NT>(
            window, args.weight, row_tile, args.x, columns, shared,
            [&](u32 column) { return activation_row(args.routing, found.pairs[first + column]); },
            [&](u32 row, u32 column, float sum) {
                const u32 pair = column < columns ? found.pairs[first + column] : NO_ROW;
                store_output(args, expert, blockIdx.x * 32 + row, pair, sum);
            });
    }
}

KERNEL(MOE_LINEAR_SPLIT_8, MoeLinearArgs, PRODUCT_THREADS, FEW_COLUMNS_CTAS) { moe_split<1>(args); }
KERNEL(MOE_LINEAR_SPLIT_16, MoeLinearArgs, PRODUCT_THREADS, 1) { moe_split<2>(args); }

KERNEL(MOE_LINEAR_SWEEP, MoeLinearArgs, PRODUCT_THREADS, 1) {
    __shared__ SweepShared shared;
    __shared__ u32 pairs[SWEEP_COLUMNS];
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 expert = blockIdx.y;
    const u32 end = args.routing.offsets[expert + 1];
    const u32 row_tile = blockIdx.x * 8 + threadIdx.x / 32;
    for (u32 first = args.routing.offsets[expert] + blockIdx.z * SWEEP_COLUMNS; first < end;
         first += gridDim.z * SWEEP_COLUMNS) {
        if (threadIdx.x < SWEEP_COLUMNS) {
            const u32 pair = first + threadIdx.x < end ? args.routing.order[first + threadIdx.x] : NO_ROW;
            pairs[threadIdx.x] = pair;
            shared.rows[threadIdx.x] = pair == NO_ROW ? NO_ROW : activation_row(args.routing, pair);
        }
        __syncthreads();
        sweep_product<WEIGHT_FORMAT>(
            args.weight, (u64)expert * args.weight.row_tiles + row_tile, row_tile < args.weight.row_tiles, args.x,
            end - first, shared, [&](u32 row, u32 column, float sum) {
                store_output(args, expert, row_tile * 32 + row, pairs[column], sum);
            });
    }
}
