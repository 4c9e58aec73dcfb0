// linear for a step of one token, with its neighbours fused (common/single.cuh).
//
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id>, -DRING_BYTES=<size> and a name for each kernel.
//   single: y_j = W_j h + bias_j (+ residual, for one product), j up to 3, where h = x or rms_norm(x).
//           Grid: CTAs that share all row tiles of all products; 256 threads.
//   pair:   the same where products have either of two formats, and each CTA one row tile; instead of the others where
//           -DSECOND_FORMAT=<GGUF type id> and -DSECOND_RING_BYTES=<size> are given.
//   gated:  y = swiglu(Wg h + bg, Wu h + bu), h likewise. Grid: CTAs that share the row tiles; 256 threads.
//           Leaves activation records for the product that reads y, where asked.
// Dynamic shared memory: 80 bytes per 32 columns, and the rings. Reads each weight once; bound by memory. The bits are those
// of rms_norm, linear, add, swiglu and linear_quantize one after the other.
#include "common/gated.cuh"
#include "common/quantize_warp.cuh"
#include "common/single.cuh"

#define MAX_PRODUCTS 3

// CTAs that share a multiprocessor: four where 64 registers are enough.
#define SINGLE_CTAS (WEIGHT_FORMAT == FORMAT_Q3_K || WEIGHT_FORMAT == FORMAT_Q6_K ? 3 : 4)
#define GATED_CTAS (WEIGHT_FORMAT == FORMAT_Q4_0 || WEIGHT_FORMAT == FORMAT_Q8_0 ? 4 : 3)

struct SingleProduct {
    Weight weight;
    const float* bias;  // [outputs] or null
    float* y;
    u32 outputs;
    u32 end_tile;  // row tiles of this product and all before it
};

struct LinearSingleArgs {
    SingleProduct products[MAX_PRODUCTS];
    SingleInput x;
    const float* residual;  // [outputs of the first product] or null
    float* normed;          // where h goes, or null
    const u32* columns;     // live rows of the set: 0 or 1
    float eps;
    u32 tiles;
};

template <int FORMAT, u32 RING_BYTES_OF_HOST>
__device__ __forceinline__ void multiply_products(const LinearSingleArgs& args) {
    const u32 blocks = args.products[0].weight.blocks;
    const SingleActivations x(blocks);
    const u32 live = *args.columns;
    const auto product_of = [&](u32 tile) {
        return tile < args.products[0].end_tile ? 0 : tile < args.products[1].end_tile ? 1 : 2;
    };
    const auto tile_at = [&](u32 i) { return blockIdx.x + i * gridDim.x; };
    const auto first_of = [&](u32 product) { return product == 0 ? 0 : args.products[product - 1].end_tile; };
    HeldQuads factors;
    factors.load(args.x.norm, 0, blocks * 8);
    const SingleProduct& first = args.products[product_of(tile_at(0))];
    const u32 first_row = (tile_at(0) - first_of(product_of(tile_at(0)))) * 32;
    __shared__ float first_rows[2][32];
    FirstRows bias(first_rows[0]);
    FirstRows residual(first_rows[1]);
    bias.load(first.bias, first_row, first.outputs);
    single_product<FORMAT, RING_BYTES_OF_HOST>(
        x, blocks, (args.tiles - blockIdx.x + gridDim.x - 1) / gridDim.x, 1,
        [&](u32 i) {
            const u32 product = product_of(tile_at(i));
            return SinglePass{&args.products[product].weight, tile_at(i) - first_of(product)};
        },
        [&] {
            wait_for_previous_kernel();
            allow_next_kernel();
            if (live == 0) return false;
            HeldRecords held;
            held.load(args.x, blocks);
            residual.load(args.residual, first_row, first.outputs);
            bias.keep();
            residual.keep();
            fill_activations(x, args.x, blocks, held, factors, args.eps, blockIdx.x == 0 ? args.normed : 0);
            return true;
        },
        [&](u32 i, u32 row, float sum) {
            const u32 index = product_of(tile_at(i));
            const SingleProduct& product = args.products[index];
            const u32 output = (tile_at(i) - first_of(index)) * 32 + row;
            if (output >= product.outputs) return;
            if (product.bias) sum += bias.of(i, row, product.bias, output);
            if (args.residual) sum += residual.of(i, row, args.residual, output);
            product.y[output] = sum;
        });
}

#ifdef SECOND_FORMAT

KERNEL(LINEAR_PAIR, LinearSingleArgs, SINGLE_THREADS, 3) {
    const u32 tile = blockIdx.x;
    const u32 product = tile < args.products[0].end_tile ? 0 : tile < args.products[1].end_tile ? 1 : 2;
    if (args.products[product].weight.format == WEIGHT_FORMAT) {
        multiply_products<WEIGHT_FORMAT, RING_BYTES>(args);
    } else {
        multiply_products<SECOND_FORMAT, SECOND_RING_BYTES>(args);
    }
}

#else

KERNEL(LINEAR_SINGLE, LinearSingleArgs, SINGLE_THREADS, SINGLE_CTAS) {
    multiply_products<WEIGHT_FORMAT, RING_BYTES>(args);
}

struct LinearGatedArgs {
    Weight gate;
    Weight up;
    SingleInput x;
    const float* gate_bias;  // [outputs] or null
    const float* up_bias;
    float* y;             // [outputs], or null where records are all that is wanted
    u8* codes;            // records of y, or null
    ActivationSums* sums;
    const u32* columns;  // live rows of the set: 0 or 1
    u32 outputs;
    u32 kind;
    float alpha;
    float limit;
    float eps;
    u32 reserved;
};

KERNEL(LINEAR_GATED, LinearGatedArgs, SINGLE_THREADS, GATED_CTAS) {
    const u32 blocks = args.gate.blocks;
    const SingleActivations x(blocks);
    const u32 live = *args.columns;
    HeldQuads factors;
    factors.load(args.x.norm, 0, blocks * 8);
    // Gate and up take turns.
    const auto tile_at = [&](u32 i) { return blockIdx.x + i / 2 * gridDim.x; };
    float gate = 0.0f;
    single_product<WEIGHT_FORMAT, RING_BYTES>(
        x, blocks, (args.gate.row_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x * 2, 2,
        [&](u32 i) { return SinglePass{i % 2 == 0 ? &args.gate : &args.up, tile_at(i)}; },
        [&] {
            wait_for_previous_kernel();
            allow_next_kernel();
            if (live == 0) return false;
            HeldRecords held;
            held.load(args.x, blocks);
            fill_activations(x, args.x, blocks, held, factors, args.eps, 0);
            return true;
        },
        [&](u32 i, u32 row, float sum) {
            const u32 output = tile_at(i) * 32 + row;
            if (output >= args.outputs) return;
            const float* bias = i % 2 == 0 ? args.gate_bias : args.up_bias;
            if (bias) sum += bias[output];
            if (i % 2 == 0) {
                gate = sum;
                return;
            }
            const float value = gated(args.kind, args.alpha, args.limit, gate, sum);
            if (args.y) args.y[output] = value;
            // The outputs are whole tiles then, and a tile is a record.
            if (args.codes) quantize_warp(value, args.codes, args.sums, tile_at(i));
        });
}

#endif
