// position_embed: y[t] = table[positions[t]], decoded to f32 from any storage format.
//
// table: [table_rows, width], positions: [tokens] u32, y: [tokens, width] f32.
// Grid: (ceil(width / 256), most tokens); one thread per element. Moves the row's stored bytes and 4 bytes per element;
// bound by latency. A position beyond the table makes a row of NaN rather than reading past its end.
#include "common/weight.cuh"

struct PositionEmbedArgs {
    Weight table;
    const u32* positions;
    float* y;
    const u32* rows;
    u32 width;
    u32 table_rows;
};

KERNEL(position_embed_f32, PositionEmbedArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = blockIdx.y;
    if (row >= *args.rows || column >= args.width) return;
    const u32 position = args.positions[row];
    args.y[(u64)row * args.width + column] =
        position < args.table_rows ? weight_at(args.table, position, column) : NAN_F32;
}
