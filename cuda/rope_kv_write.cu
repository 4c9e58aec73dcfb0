// rope and kv_write at once: queries are rotated, keys rotated and stored with the values at slots[t].
//
// q, y: [tokens, q_width] f32; k, v: [tokens, kv_width] f32; pools: [slots, kv_width] f16 (nearest even). Heads and their
// rotated parts are multiples of 8 wide.
// Grid: (CTAs of a token, most tokens); a thread takes the same eight elements of four heads, four pairs of each, and reads
// their angles once. Moves 8 bytes per element of q and 12 per element of k, 16 (8 to the pools) at a time; bound by memory,
// in small steps by latency. The bits are those of rope and kv_write one after the other.
#include "common/async.cuh"
#include "common/inputs.cuh"
#include "common/rotation.cuh"

#define HEADS 4

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

// Eight elements of a head: four pairs that are rotated alike in every head, or eight that pass.
struct Part {
    u32 low;   // first of four elements
    u32 high;  // first of the other four
    bool rotates;
};

__device__ __forceinline__ Part part_of(const Rotation& rotation, u32 part) {
    const bool rotates = part * 8 < rotation.rotated;
    if (rotates && !rotation.interleaved) return {4 * part, rotation.rotated / 2 + 4 * part, true};
    return {8 * part, 8 * part + 4, rotates};
}

struct Floats8 {
    Floats4 low, high;
};

__device__ __forceinline__ Floats8 load_part(const float* head, const Part& part) {
    return {*(const Floats4*)(head + part.low), *(const Floats4*)(head + part.high)};
}

// As `rotate` of both.
__device__ __forceinline__ void rotate_pair(float& a, float& b, float cosine, float sine) {
    const float first = __fmaf_rn(a, cosine, -__fmul_rn(b, sine));
    b = __fmaf_rn(b, cosine, __fmul_rn(a, sine));
    a = first;
}

__device__ __forceinline__ void rotate_part(Floats8& x, const Floats4& cosines, const Floats4& sines, bool interleaved) {
    if (interleaved) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            rotate_pair(x.low.at[2 * i], x.low.at[2 * i + 1], cosines.at[i], sines.at[i]);
            rotate_pair(x.high.at[2 * i], x.high.at[2 * i + 1], cosines.at[2 + i], sines.at[2 + i]);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) rotate_pair(x.low.at[i], x.high.at[i], cosines.at[i], sines.at[i]);
}

__device__ __forceinline__ void store_halves(u16* to, const Floats4& x) {
    u32 halves[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) halves[i] = float_to_half(x.at[i]);
    *(Words2*)to = {halves[0] | halves[1] << 16, halves[2] | halves[3] << 16};
}

KERNEL(rope_kv_write_f32_f16, RopeKvWriteArgs, 256) {
    const u32 head_dim = args.rotation.head_dim;
    const u32 parts = head_dim / 8;
    const u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 index = thread % parts;
    const Part part = part_of(args.rotation, index);
    const u32 query_heads = args.q_width / head_dim;
    const u32 query_groups = (query_heads + HEADS - 1) / HEADS;
    const u32 group = thread / parts;
    const bool is_query = group < query_groups;
    const u32 first = (is_query ? group : group - query_groups) * HEADS;
    const u32 end = is_query ? query_heads : args.kv_width / head_dim;
    // What is no earlier kernel's work comes before its end.
    const u32 row = blockIdx.y;
    const bool live = row < *args.rows && first < end;
    const u32 position = live ? args.positions[row] : 0;
    const u32 slot = live ? args.slots[row] : NO_SLOT;
    const bool in_table = position < args.rotation.table_rows;
    Floats4 cosines = {};
    Floats4 sines = {};
    if (live && part.rotates && in_table) {
        const float* angles = args.rotation.table + (u64)position * args.rotation.rotated + 4 * index;
        cosines = *(const Floats4*)angles;
        sines = *(const Floats4*)(angles + args.rotation.rotated / 2);
    }
    wait_for_previous_kernel();
    allow_next_kernel();
    if (!live) return;
    const u32 width = is_query ? args.q_width : args.kv_width;
    const u64 from = (u64)row * width + first * head_dim;
    const float* source = (is_query ? args.q : args.k) + from;
    Floats8 x[HEADS];
#pragma unroll
    for (u32 i = 0; i < HEADS; ++i) {
        if (first + i < end) x[i] = load_part(source + i * head_dim, part);
    }
    Floats8 values[HEADS];
    if (!is_query) {
#pragma unroll
        for (u32 i = 0; i < HEADS; ++i) {
            if (first + i < end) values[i] = load_part(args.v + from + i * head_dim, part);
        }
    }
    if (part.rotates && in_table) {
#pragma unroll
        for (u32 i = 0; i < HEADS; ++i) rotate_part(x[i], cosines, sines, args.rotation.interleaved != 0);
    } else if (part.rotates) {
        const Floats4 none = {{NAN_F32, NAN_F32, NAN_F32, NAN_F32}};
#pragma unroll
        for (u32 i = 0; i < HEADS; ++i) x[i] = {none, none};
    }
    if (is_query) {
        float* y = args.y + from;
#pragma unroll
        for (u32 i = 0; i < HEADS; ++i) {
            if (first + i >= end) break;
            *(Floats4*)(y + i * head_dim + part.low) = x[i].low;
            *(Floats4*)(y + i * head_dim + part.high) = x[i].high;
        }
        return;
    }
    // NO_SLOT is above every pool's size; so is whatever else has no place in it.
    if (slot >= args.num_slots) return;
    const u64 to = (u64)slot * args.kv_width + first * head_dim;
#pragma unroll
    for (u32 i = 0; i < HEADS; ++i) {
        if (first + i >= end) break;
        store_halves(args.keys + to + i * head_dim + part.low, x[i].low);
        store_halves(args.keys + to + i * head_dim + part.high, x[i].high);
        store_halves(args.values + to + i * head_dim + part.low, values[i].low);
        store_halves(args.values + to + i * head_dim + part.high, values[i].high);
    }
}
