// rope and kv_write at once: queries are rotated, keys rotated and stored with the values at slots[t].
//
// q, y: [tokens, q_width] f32; k, v: [tokens, kv_width] f32; pools: [slots, kv_width] f16 (nearest even).
// Grid: (ceil((q_width + kv_width) / 256), most tokens); one thread per element of q and of k. Moves 8 bytes per element
// of q and 12 per element of k; bound by latency. The bits are those of rope and kv_write one after the other.
#include "common/inputs.cuh"
#include "common/rotation.cuh"

struct RopeKvWriteArgs {
    const float* q;
    float* y;
    const u32* positions;
    Rotation rotation;
    const float* k;
    const float* v;
    u16* keys;
    u16* values;
    const u32* slots;
    const u32* rows;
    u32 kv_width;
    u32 num_slots;
    u32 q_width;
    u32 reserved;
};

KERNEL(rope_kv_write_f32_f16, RopeKvWriteArgs, 256) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 row = blockIdx.y;
    if (row >= *args.rows || thread >= args.q_width + args.kv_width) return;
    const u32 position = args.positions[row];
    if (thread < args.q_width) {
        const u64 first = (u64)row * args.q_width;
        args.y[first + thread] = rotated_at(args.rotation, args.q + first, thread, position);
        return;
    }
    const u32 column = thread - args.q_width;
    const u32 slot = args.slots[row];
    // NO_SLOT is above every pool's size; so is whatever else has no place in it.
    if (slot >= args.num_slots) return;
    const u64 first = (u64)row * args.kv_width;
    const u64 to = (u64)slot * args.kv_width + column;
    args.keys[to] = float_to_half(rotated_at(args.rotation, args.k + first, column, position));
    args.values[to] = float_to_half(args.v[first + column]);
}
