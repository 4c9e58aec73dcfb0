// linear for a step of one token, with its neighbours fused (common/single.cuh).
//
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id> and a name for each kernel.
//   single: y_j = W_j h + bias_j (+ residual, for one product), j up to 3, where h = x or rms_norm(x).
//           Grid: CTAs that share all row tiles of all products; 256 threads.
//   gated:  y = swiglu(Wg h + bg, Wu h + bu), h likewise. Grid: CTAs that share the row tiles; 512 threads.
// Dynamic shared memory: 80 bytes per 32 columns. Reads each weight once; bound by memory. The bits are those of rms_norm,
// linear, add and swiglu one after the other.
#include "common/gated.cuh"
#include "common/single.cuh"

#define MAX_PRODUCTS 3

struct SingleProduct {
    Weight weight;
    const float* bias;  // [outputs] or null
    float* y;
    u32 outputs;
    u32 end_tile;  // row tiles of this product and all before it
};

struct LinearSingleArgs {
    SingleProduct products[MAX_PRODUCTS];
    const float* x;
    const float* norm;      // [columns] or null
    const float* residual;  // [outputs of the first product] or null
    float* normed;          // where h goes, or null
    const u32* columns;     // live rows of the set: 0 or 1
    float eps;
    u32 tiles;
};

KERNEL(LINEAR_SINGLE, LinearSingleArgs, GROUP_THREADS, 2) {
    const u32 blocks = args.products[0].weight.blocks;
    const SingleActivations x(1, blocks);
    const auto product_of = [&](u32 tile) {
        return tile < args.products[0].end_tile ? 0 : tile < args.products[1].end_tile ? 1 : 2;
    };
    const auto tile_at = [&](u32 i) { return blockIdx.x + i * gridDim.x; };
    const auto first_of = [&](u32 product) { return product == 0 ? 0 : args.products[product - 1].end_tile; };
    single_product<WEIGHT_FORMAT, 1>(
        x, blocks, (args.tiles - blockIdx.x + gridDim.x - 1) / gridDim.x,
        [&](u32 i) {
            const u32 product = product_of(tile_at(i));
            return GroupTile{&args.products[product].weight, tile_at(i) - first_of(product), 0};
        },
        [&] {
            wait_for_previous_kernel();
            allow_next_kernel();
            if (*args.columns == 0) return false;
            fill_activations<GROUP_THREADS>(x, args.x, 1, blocks * 32, args.norm, args.eps,
                                            blockIdx.x == 0 ? args.normed : 0);
            return true;
        },
        [&](u32 i, u32 row, const float(&sums)[1]) {
            const u32 index = product_of(tile_at(i));
            const SingleProduct& product = args.products[index];
            const u32 output = (tile_at(i) - first_of(index)) * 32 + row;
            if (output >= product.outputs) return;
            float sum = sums[0];
            if (product.bias) sum += product.bias[output];
            if (args.residual) sum += args.residual[output];
            product.y[output] = sum;
        });
}

struct LinearGatedArgs {
    Weight gate;
    Weight up;
    const float* x;
    const float* norm;       // [columns] or null
    const float* gate_bias;  // [outputs] or null
    const float* up_bias;
    float* y;
    const u32* columns;  // live rows of the set: 0 or 1
    u32 outputs;
    u32 kind;
    float alpha;
    float limit;
    float eps;
    u32 reserved;
};

KERNEL(LINEAR_GATED, LinearGatedArgs, 2 * GROUP_THREADS, 1) {
    const u32 blocks = args.gate.blocks;
    const SingleActivations x(1, blocks);
    const bool is_up = threadIdx.x >= GROUP_THREADS;
    const auto tile_at = [&](u32 i) { return blockIdx.x + i * gridDim.x; };
    single_product<WEIGHT_FORMAT, 2>(
        x, blocks, (args.gate.row_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x,
        [&](u32 i) { return GroupTile{is_up ? &args.up : &args.gate, tile_at(i), 0}; },
        [&] {
            wait_for_previous_kernel();
            allow_next_kernel();
            if (*args.columns == 0) return false;
            fill_activations<2 * GROUP_THREADS>(x, args.x, 1, blocks * 32, args.norm, args.eps, 0);
            return true;
        },
        [&](u32 i, u32 row, const float(&sums)[2]) {
            const u32 output = tile_at(i) * 32 + row;
            if (output >= args.outputs) return;
            const float gate = args.gate_bias ? sums[0] + args.gate_bias[output] : sums[0];
            const float up = args.up_bias ? sums[1] + args.up_bias[output] : sums[1];
            args.y[output] = gated(args.kind, args.alpha, args.limit, gate, up);
        });
}
