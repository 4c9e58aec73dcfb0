// kv_write: stores keys and values at slots[t], rounded to binary16 (nearest even); padding tokens are skipped.
//
// k, v: [tokens, width] f32 with width = num_kv_heads * head_dim; pools: [slots, width] f16.
// Grid: (ceil(width / 256), most tokens); one thread per element. Moves 12 bytes per element; bound by latency.
#include "common/inputs.cuh"

struct KvWriteArgs {
    const float* k;
    const float* v;
    u16* keys;
    u16* values;
    const u32* slots;
    const u32* rows;
    u32 width;
    u32 num_slots;
};

KERNEL(kv_write_f32_f16, KvWriteArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = blockIdx.y;
    if (row >= *args.rows || column >= args.width) return;
    const u32 slot = args.slots[row];
    // NO_SLOT is above every pool's size; so is whatever else has no place in it.
    if (slot >= args.num_slots) return;
    const u64 from = (u64)row * args.width + column;
    const u64 to = (u64)slot * args.width + column;
    args.keys[to] = float_to_half(args.k[from]);
    args.values[to] = float_to_half(args.v[from]);
}
