// rope: rotates the first `rotated` elements of every head by the angles of the token's position; the rest passes.
//
//   pair (a, b) with cosine c and sine s of its frequency: a' = a c - b s, b' = b c + a s
//   style 0 (half-split): pairs (i, i + rotated/2); style 1 (interleaved): pairs (2i, 2i + 1)
//
// x, y: [tokens, heads * head_dim] f32, table: [positions, rotated] f32 (cosines, then sines).
// Grid: (ceil(width / 256), most tokens); one thread per output element. Moves 12 bytes per element; bound by latency.
// A position beyond the table makes NaN rather than reading past its end.
#include "common/rotation.cuh"

struct RopeArgs {
    const float* x;
    float* y;
    const u32* positions;
    const u32* rows;
    Rotation rotation;
    u32 width;
    u32 reserved;
};

KERNEL(rope_f32, RopeArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = blockIdx.y;
    if (row >= *args.rows || column >= args.width) return;
    const u64 first = (u64)row * args.width;
    args.y[first + column] = rotated_at(args.rotation, args.x + first, column, args.positions[row]);
}
