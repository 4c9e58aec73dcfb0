// linear for up to 64 rows whose activations fit into shared memory (common/batch.cuh).
//
// Compiled once per format: -DWEIGHT_FORMAT=<GGUF type id>, -DRING_BYTES_8=<size>, -DRING_BYTES_16=<size>,
// -DRING_BYTES_TWIN_16=<size> and a name for each kernel.
//   stream, 8, 16, twin 16: y[t][o] = sum_i weight[o][i] x[t][i] + bias[o] (+ residual[t][o]), for up to three weights of
//                           one input.
//   gated, 8, 16, twin 16:  activation records of swiglu(Wg x + bg, Wu x + bu), a row tile being a block of them.
// x: activations made before; y: [rows of the set, outputs] f32. Grid: as many CTAs as stay resident, or one for each row
// tile and group of 8 or 16 columns; they take equal shares. 256 threads, twin: 512; `BatchMemory` of dynamic shared memory.
// Reads each weight once from memory and again from L2 for each further group of columns, whose CTAs keep pace; bound
// by memory, with several groups by the scaling. Weights are on their way before the previous kernel has ended. The bits are
// those of linear, add, swiglu and linear_quantize one after the other.
#include "common/batch.cuh"
#include "common/gated.cuh"
#include "common/product.cuh"
#include "common/quantize_warp.cuh"

// One team and 8 columns, of which two CTAs share a multiprocessor where rows are short; with 16 columns they have it alone.
typedef BatchMemory<WEIGHT_FORMAT, 1, 8> Memory8;
typedef BatchMemory<WEIGHT_FORMAT, 1, 16> Memory16;
typedef BatchMemory<WEIGHT_FORMAT, 2, 16> MemoryTwin16;
static_assert(Memory8::RING == RING_BYTES_8 && Memory16::RING == RING_BYTES_16 && MemoryTwin16::RING == RING_BYTES_TWIN_16,
              "host and device disagree on the rings' size");

#define MAX_PARTS 3

struct LinearStreamPart {
    Weight weight;
    const float* bias;      // [outputs] or null
    const float* residual;  // as y, or null; may be y itself
    float* y;
    u32 outputs;
    u32 end;  // row tiles of this part and all before it
};

struct LinearStreamArgs {
    Activations x;
    const u32* columns;  // live rows of the set
    u32 tiles;           // row tiles of all parts
    u32 reserved;
    LinearStreamPart parts[MAX_PARTS];
};

struct LinearStreamGatedArgs {
    Weight gate;
    Weight up;
    Activations x;
    const u32* columns;      // live rows of the set
    const float* gate_bias;  // [outputs] or null
    const float* up_bias;
    u8* codes;
    ActivationSums* sums;
    u32 kind;
    float alpha;
    float limit;
    u32 reserved;
};

// A CTA's share of `tiles` row tiles of all groups of columns: what both operations have in common.
// `Held`: what `load` asks of memory for `finish`.
template <class M, int PASSES, class Held, class PlaceOf, class Load, class Finish>
__device__ __forceinline__ void multiply_columns(u32 blocks, u32 tiles, const Activations& x, const u32* live,
                                                 const PlaceOf& place_of, const Load& load, const Finish& finish) {
    const M memory(blocks);
    const u32 columns = *live;
    const u32 items = (tiles + M::TEAMS - 1) / M::TEAMS;
    const u32 tasks = (columns + M::COLUMNS - 1) / M::COLUMNS * items;
    const auto existing = [&](u32 tile) { return tile < tiles ? tile : tiles - 1; };
    batch_product<WEIGHT_FORMAT, PASSES>(
        memory, blocks, (u32)((u64)blockIdx.x * tasks / gridDim.x), (u32)((u64)(blockIdx.x + 1) * tasks / gridDim.x), items,
        [&](u32, u32 tile, u32 pass) { return place_of(existing(tile), pass); },
        [&] {
            wait_for_previous_kernel();
            allow_next_kernel();
        },
        [&](u32 group) {
            const u32 first = group * M::COLUMNS;
            const u32 count = columns - first < M::COLUMNS ? columns - first : M::COLUMNS;
            memory.copy_columns(x.codes, x.sums, count, blocks, [&](u32 column) { return first + column; });
            return count;
        },
        [&](u32 group, u32 tile, u32 pass, u32 column) {
            return load(existing(tile), pass, group * M::COLUMNS + column, columns);
        },
        [&](const Held& held, u32 group, u32 tile, u32 pass, u32 index, u32 column, float sum) {
            if (tile < tiles) finish(held, tile, pass, index, group * M::COLUMNS + column, sum);
        });
}

// What is added to a lane's row of a tile: the bias, and the residuals of the warp's columns.
template <class M>
struct Addends {
    float bias;
    float residual[M::PER_WARP];
};

template <class M>
__device__ __forceinline__ void linear_stream(const LinearStreamArgs& args) {
    const u32 lane = threadIdx.x % 32;
    const auto part_of = [&](u32 tile) { return (tile >= args.parts[0].end) + (tile >= args.parts[1].end); };
    const auto tile_in = [&](u32 tile, u32 part) { return tile - (part == 0 ? 0 : args.parts[part - 1].end); };
    multiply_columns<M, 1, Addends<M>>(
        args.parts[0].weight.blocks, args.tiles, args.x, args.columns,
        [&](u32 tile, u32) {
            const u32 part = part_of(tile);
            return SinglePass{&args.parts[part].weight, tile_in(tile, part)};
        },
        [&](u32 tile, u32, u32 column, u32 columns) {
            const u32 index = part_of(tile);
            const LinearStreamPart& part = args.parts[index];
            const u32 output = tile_in(tile, index) * 32 + lane;
            Addends<M> held = {};
            if (output >= part.outputs) return held;
            if (part.bias) held.bias = part.bias[output];
            if (part.residual) {
#pragma unroll
                for (u32 i = 0; i < M::PER_WARP; ++i) {
                    const u32 row = column + 8 * i;
                    if (row < columns) held.residual[i] = part.residual[(u64)row * part.outputs + output];
                }
            }
            return held;
        },
        [&](const Addends<M>& held, u32 tile, u32, u32 index, u32 column, float sum) {
            const u32 number = part_of(tile);
            const LinearStreamPart& part = args.parts[number];
            const u32 output = tile_in(tile, number) * 32 + lane;
            if (output >= part.outputs) return;
            if (part.bias) sum += held.bias;
            if (part.residual) sum += held.residual[index];
            part.y[(u64)column * part.outputs + output] = sum;
        });
}

template <class M>
__device__ __forceinline__ void linear_stream_gated(const LinearStreamGatedArgs& args) {
    const u32 lane = threadIdx.x % 32;
    float gate[M::PER_WARP];
    multiply_columns<M, 2, float>(
        args.gate.blocks, args.gate.row_tiles, args.x, args.columns,
        [&](u32 tile, u32 pass) { return SinglePass{pass == 0 ? &args.gate : &args.up, tile}; },
        [&](u32 tile, u32 pass, u32, u32) {
            const float* biases = pass == 0 ? args.gate_bias : args.up_bias;
            return biases ? biases[tile * 32 + lane] : 0.0f;
        },
        [&](float bias, u32 tile, u32 pass, u32 index, u32 column, float sum) {
            if (pass == 0 ? args.gate_bias != 0 : args.up_bias != 0) sum += bias;
            if (pass == 0) {
                gate[index] = sum;
                return;
            }
            const float value = gated(args.kind, args.alpha, args.limit, gate[index], sum);
            quantize_warp(value, args.codes, args.sums, (u64)column * args.gate.row_tiles + tile);
        });
}

KERNEL(LINEAR_STREAM_8, LinearStreamArgs, 256, 2) { linear_stream<Memory8>(args); }
KERNEL(LINEAR_STREAM_16, LinearStreamArgs, 256, 1) { linear_stream<Memory16>(args); }
KERNEL(LINEAR_STREAM_TWIN_16, LinearStreamArgs, 512, 1) { linear_stream<MemoryTwin16>(args); }
KERNEL(LINEAR_STREAM_GATED_8, LinearStreamGatedArgs, 256, 2) { linear_stream_gated<Memory8>(args); }
KERNEL(LINEAR_STREAM_GATED_16, LinearStreamGatedArgs, 256, 1) { linear_stream_gated<Memory16>(args); }
KERNEL(LINEAR_STREAM_GATED_TWIN_16, LinearStreamGatedArgs, 512, 1) { linear_stream_gated<MemoryTwin16>(args); }
