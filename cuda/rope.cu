// rope: rotates the first `rotated` elements of every head by the angles of the token's position; the rest passes.
//
//   pair (a, b) with cosine c and sine s of its frequency: a' = a c - b s, b' = b c + a s
//   style 0 (half-split): pairs (i, i + rotated/2); style 1 (interleaved): pairs (2i, 2i + 1)
//
// x, y: [tokens, heads * head_dim] f32, table: [positions, rotated] f32 (cosines, then sines).
// Grid: (ceil(width / 256), most tokens); one thread per output element. Moves 12 bytes per element; bound by latency.
// A position beyond the table makes NaN rather than reading past its end.
#include "common/types.cuh"

struct RopeArgs {
    const float* x;
    const float* table;
    float* y;
    const u32* positions;
    const u32* rows;
    u32 width;
    u32 head_dim;
    u32 rotated;
    u32 table_rows;
    u32 interleaved;
    u32 reserved;
};

KERNEL(rope_f32, RopeArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = blockIdx.y;
    if (row >= *args.rows || column >= args.width) return;
    const float* x = args.x + (u64)row * args.width + column;
    float* y = args.y + (u64)row * args.width + column;
    const u32 element = column % args.head_dim;
    if (element >= args.rotated) {
        *y = *x;
        return;
    }
    const u32 position = args.positions[row];
    if (position >= args.table_rows) {
        *y = NAN_F32;
        return;
    }
    const u32 half = args.rotated / 2;
    const u32 frequency = args.interleaved ? element / 2 : element % half;
    const bool first = args.interleaved ? element % 2 == 0 : element < half;
    const int distance = args.interleaved ? 1 : (int)half;
    const float* angles = args.table + (u64)position * args.rotated;
    const float cosine = angles[frequency];
    const float sine = angles[half + frequency];
    *y = first ? x[0] * cosine - x[distance] * sine : x[0] * cosine + x[-distance] * sine;
}
