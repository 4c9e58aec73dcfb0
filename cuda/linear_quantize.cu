// linear, first step: activations to 12-bit block floating point (common/activation.cuh).
//
// x: [rows, columns] f32 -> codes: [rows, columns / 32] records of 64 bytes, sums: [rows, columns / 32] records of 16.
// Grid: (ceil(columns / 1024), most rows); a warp makes four records, eight lanes each. Moves 4 bytes in and 2.5 out per
// element; bound by latency. Rounds each element to 1 / 2047 of its block's largest: noise of
// about 1e-7 of the signal's power.
#include "common/quantize.cuh"

struct LinearQuantizeArgs {
    const float* x;
    u8* codes;
    ActivationSums* sums;
    const u32* rows;  // live rows, before `rows_per`
    u32 blocks;
    u32 rows_per;  // activation rows per live row
    u32 use;    // a RecordUse
    u32 reserved;
};

KERNEL(linear_quantize_f32, LinearQuantizeArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 row = blockIdx.y;
    const u32 part = threadIdx.x % 8;
    const u32 block = blockIdx.x * 32 + threadIdx.x / 8;
    if (row >= *args.rows * args.rows_per) return;
    // Blocks past the end stay for the shuffles.
    const bool live = block < args.blocks;
    const u32 own = live ? block : 0;
    const Floats4 x = ((const Floats4*)args.x)[((u64)row * args.blocks + own) * 8 + part];
    quantize_block(x, part, live, {args.codes, args.sums, row, args.blocks, own, args.use});
}
