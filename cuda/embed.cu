// embed: y[t] = table[tokens[t]], decoded to f32 from any storage format.
//
// table: [table_rows, width], tokens: [tokens] u32, y: [tokens, width] f32.
// Grid: (ceil(width / 256), most tokens); one thread per element. Moves the row's stored bytes and 4 bytes per element;
// bound by latency. An id beyond the table makes a row of NaN rather than reading past its end.
#include "common/weight.cuh"

struct EmbedArgs {
    Weight table;
    const u32* ids;
    float* y;
    const u32* rows;
    u32 width;
    u32 table_rows;
};

KERNEL(embed_f32, EmbedArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = blockIdx.y;
    if (row >= *args.rows || column >= args.width) return;
    const u32 id = args.ids[row];
    args.y[(u64)row * args.width + column] = id < args.table_rows ? weight_at(args.table, id, column) : NAN_F32;
}
