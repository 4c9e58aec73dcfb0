// gelu: y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the tanh form gpt2 was trained with.
//
// a = x, y: [rows, width] f32 (b is not read). Grid: (ceil(width / 256), most rows); one thread per element.
// Moves 8 bytes per element; bound by memory.
#include "common/types.cuh"

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

KERNEL(gelu_f32, ElementwiseArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = blockIdx.y;
    if (row >= *args.rows || column >= args.width) return;
    const u64 at = (u64)row * args.width + column;
    const float x = args.a[at];
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    args.y[at] = 0.5f * x * (1.0f + tanhf(inner));
}
