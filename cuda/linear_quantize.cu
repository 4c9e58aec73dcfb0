// linear, first step: activations to 16-bit block floating point (common/activation.cuh).
//
// x: [rows, columns] f32 -> codes: [rows, columns / 32] records of 64 bytes, sums: [rows, columns / 32] records of 16.
// Grid: (ceil(columns / 1024), most rows); a warp makes four records, eight lanes each. Moves 4 bytes in and 2.5 out per
// element; bound by latency. Rounds each element to 1 / 32639 of its block's largest: noise of
// about 4e-10 of the signal's power.
#include "common/quantize.cuh"

struct LinearQuantizeArgs {
    const float* x;
    u8* codes;
    ActivationSums* sums;
    const u32* rows;  // live rows, before `rows_per`
    u32 blocks;
    u32 rows_per;  // activation rows per live row
    u32 planes;    // 1: high and low bytes apart
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
    const u64 record = (u64)row * args.blocks + (live ? block : 0);
    const Floats4 x = ((const Floats4*)args.x)[record * 8 + part];
    quantize_block(x, part, live, (u32*)(args.codes + record * ACTIVATION_CODE_BYTES), args.sums + record,
                   args.planes != 0);
}
