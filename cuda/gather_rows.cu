// gather_rows: y[r] = x[out_rows[r]], the rows whose logits are wanted.
//
// x: [tokens, width] f32, y: [rows, width] f32. Grid: (ceil(width / 256), most rows); one thread per element.
// Moves 8 bytes per element; bound by latency.
#include "common/types.cuh"

struct GatherRowsArgs {
    const float* x;
    const u32* out_rows;
    float* y;
    const u32* rows;
    u32 width;
    u32 reserved;
};

KERNEL(gather_rows_f32, GatherRowsArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = blockIdx.y;
    if (row >= *args.rows || column >= args.width) return;
    args.y[(u64)row * args.width + column] = args.x[(u64)args.out_rows[row] * args.width + column];
}
