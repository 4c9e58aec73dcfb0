// swiglu: the gated activation of a feed-forward block, element by element.
//
//   kind 0 (silu):    y = gate * sigmoid(gate) * up
//   kind 1 (clamped): g = min(gate, limit), u = clamp(up, -limit, limit), y = (u + 1) * g * sigmoid(alpha * g)
//
// a = gate, b = up, y: [rows, width] f32. Grid: (ceil(width / 256), most rows); one thread per element.
// Moves 12 bytes per element; bound by memory.
#include "common/gated.cuh"

struct ElementwiseArgs {
    const float* a;
    const float* b;
    float* y;
    const u32* rows;
    u32 width;
    u32 kind;
    float alpha;
    float limit;
};

KERNEL(swiglu_f32, ElementwiseArgs, 256) {
    wait_for_previous_kernel();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = blockIdx.y;
    if (row >= *args.rows || column >= args.width) return;
    const u64 at = (u64)row * args.width + column;
    args.y[at] = gated(args.kind, args.alpha, args.limit, args.a[at], args.b[at]);
}
