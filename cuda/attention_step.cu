// rope, rope, kv_write and attention of a step of one token; see common/attention_tile.cuh for the formula and the order of
// every sum.
//
// Compiled per padded head size: -DHEAD_DIM_PADDED=32, 64, 96 or 128 (head_dim a multiple of 8, at most that).
// Grid: (1, kv heads * head groups, tile groups), 128 threads. Each CTA rotates its own query heads; the warp that has the
// tile of the token's own position first rotates the key and stores it with the value. A warp takes single tiles; they are
// joined through shared memory when one CTA has them all, else by the last CTA to arrive.
// What does not come from the previous kernel (counts, positions, block table) is read before that has ended. Reads each
// cached position once per kv head; bound by latency for short contexts, by memory for long ones. The bits are those of rope,
// kv_write, attention and linear_quantize one after the other.
#include "common/arrival.cuh"
#include "common/attention_join.cuh"
#include "common/quantize_warp.cuh"
#include "common/rotation.cuh"

#define D HEAD_DIM_PADDED
#define STEP_WARPS 4
#define WARP_ROWS 16

struct AttentionStepArgs {
    AttentionArgs attention;  // q not rotated yet; y may be null where records are all that is wanted
    Rotation rotation;
    const float* k;    // [kv heads * head_dim], not rotated yet
    const float* v;
    const u32* slots;  // the token's slot
    u32 num_slots;
    u32 reserved;
};

// The token's own key and value into the cache, by one warp that then reads them back.
__device__ __forceinline__ void store_own(const AttentionStepArgs& args, u32 kv_head, u32 position, u32 slot, u32 lane) {
    const AttentionArgs& shape = args.attention;
    if (slot < args.num_slots) {
        for (u32 element = lane; element < shape.head_dim; element += 32) {
            const u32 column = kv_head * shape.head_dim + element;
            const u64 to = (u64)slot * shape.num_kv_heads * shape.head_dim + column;
            ((u16*)shape.keys)[to] = float_to_half(rotated_at(args.rotation, args.k, column, position));
            ((u16*)shape.values)[to] = float_to_half(args.v[column]);
        }
    }
    __syncwarp();
}

// One warp's results of a tile: m and l of each row, then the rows' outputs.
struct TileResults {
    float softmax[WARP_ROWS][2];
    float out[WARP_ROWS][D];
};

// Leaves a tile's results: row r of a lane at `softmax(r)` and `out(r)`.
template <class SoftmaxOf, class OutOf>
__device__ __forceinline__ void leave_results(const LaneRows& rows, const RowSoftmax (&softmax)[2], const RowOutputs<D>& out,
                                              u32 head_dim, u32 lane, const SoftmaxOf& softmax_of, const OutOf& out_of) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (!rows.live[r]) continue;
        if (lane % 4 == 0) {
            softmax_of(r)[0] = softmax[r].m;
            softmax_of(r)[1] = softmax[r].l;
        }
        float* to = out_of(r);
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const u32 dimension = (2 * (lane % 4) + c) * (D / 8) + n;
                if (dimension < head_dim) to[dimension] = out.at[n][2 * r + c];
            }
    }
}

// A warp's queries, and after them its results.
union WarpRows {
    QueryFragments<D> queries;
    TileResults results;
};

// Asks for the keys and values of a tile, which lie far away by now; not for what the previous kernel has yet to make.
__device__ __forceinline__ void request_tile(const AttentionArgs& args, u32 sequence, u32 kv_head, u32 tile, u32 own, u32 lane) {
    if (own == 0) return;
    const TileSlots slots = tile_slots(args, sequence, tile, own - 1, lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (slots.slot[i] == NO_SLOT) continue;
        const u64 row = ((u64)slots.slot[i] * args.num_kv_heads + kv_head) * args.head_dim;
        for (u32 element = 0; element < args.head_dim; element += 64) {
            prefetch_to_l2(args.keys + row + element);
            prefetch_to_l2(args.values + row + element);
        }
    }
}

KERNEL(ATTENTION_STEP, AttentionStepArgs, 32 * STEP_WARPS, 2) {
    __shared__ WarpRows warps[STEP_WARPS];
    __shared__ float rotated[WARP_ROWS * D];
    const AttentionArgs& attention = args.attention;
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    RowShape shape = row_shape(attention);
    shape.tokens = 1;
    const u32 kv_head = blockIdx.y / shape.head_groups;
    const u32 head_group = blockIdx.y % shape.head_groups;
    const u32 tokens = *attention.tokens;
    const u32 own = attention.positions[0];
    const u32 sequence = attention.sequences[0];
    const u32 slot = args.slots[0];
    const u32 begin = first_tile(attention, own);
    u32 count = own / ATTENTION_TILE + 1 - begin;
    count = count < attention.tiles ? count : attention.tiles;
    // CTAs that have a tile.
    u32 active = (count + STEP_WARPS - 1) / STEP_WARPS;
    active = active < gridDim.z ? active : gridDim.z;
    if (tokens > 0 && blockIdx.z * STEP_WARPS + warp < count) {
        request_tile(attention, sequence, kv_head, begin + blockIdx.z * STEP_WARPS + warp, own, lane);
    }
    wait_for_previous_kernel();
    allow_next_kernel();
    if (tokens == 0 || blockIdx.z >= active) return;
    const u32 first_head = kv_head * shape.group + head_group * WARP_ROWS;
    const u32 left = shape.group - head_group * WARP_ROWS;
    const u32 heads = left < WARP_ROWS ? left : WARP_ROWS;
    for (u32 i = threadIdx.x; i < heads * attention.head_dim; i += 32 * STEP_WARPS) {
        rotated[i] = rotated_at(args.rotation, attention.q, first_head * attention.head_dim + i, own);
    }
    // Queries are read from shared memory, the group's heads side by side.
    AttentionArgs grouped = attention;
    grouped.q = rotated;
    LaneRows rows = lane_rows(shape, 0, 1, kv_head, head_group, lane);
    LaneRows in_group = rows;
#pragma unroll
    for (int r = 0; r < 2; ++r) in_group.head[r] = rows.live[r] ? rows.head[r] - first_head : 0;
    // The tile of the own position is the last, and has a warp to itself.
    const bool has_own = (count - 1) % (active * STEP_WARPS) == blockIdx.z * STEP_WARPS + warp;
    if (has_own) store_own(args, kv_head, own, slot, lane);
    __syncthreads();
    float unscale[2];
    load_queries<D>(grouped, in_group, lane, warps[warp].queries, unscale);
    const i32 position[2] = {rows.live[0] ? (i32)own : -1, rows.live[1] ? (i32)own : -1};
    // One CTA has all tiles, a warp at most one.
    const bool alone = active == 1 && count <= STEP_WARPS;
#pragma unroll 1
    for (u32 u = blockIdx.z * STEP_WARPS + warp; u < count; u += active * STEP_WARPS) {
        RowSoftmax softmax[2];
        RowOutputs<D> out;
        attend_tile<D, D <= 64 ? 8 : 4, D <= 64 ? 4 : 1>(attention, warps[warp].queries, unscale, position, sequence, kv_head, begin + u,
                                                         own, lane, softmax, out);
        if (alone) {
            // Every lane has read the queries.
            __syncwarp();
            TileResults& to = warps[warp].results;
            leave_results(rows, softmax, out, attention.head_dim, lane, [&](int r) { return to.softmax[in_group.head[r]]; },
                          [&](int r) { return to.out[in_group.head[r]]; });
        } else {
            const auto index = [&](int r) { return (u64)rows.head[r] * attention.tiles + u; };
            leave_results(rows, softmax, out, attention.head_dim, lane,
                          [&](int r) { return attention.partial_softmax + 2 * index(r); },
                          [&](int r) { return attention.partial + index(r) * attention.head_dim; });
        }
    }
    if (alone) {
        __syncthreads();
    } else if (!arrives_last(attention.arrivals + blockIdx.y, active)) {
        return;
    }
    join_heads<D, 32 * STEP_WARPS>(
        heads, count, attention.head_dim,
        [&](u32 row) {
            if (alone) {
                const TileResults& all = warps[0].results;
                return HeadTiles{all.softmax[row], all.out[row], sizeof(WarpRows) / 4, sizeof(WarpRows) / 4, true};
            }
            const u64 index = (u64)(first_head + row) * attention.tiles;
            return HeadTiles{attention.partial_softmax + 2 * index, attention.partial + index * attention.head_dim, 2,
                             attention.head_dim, false};
        },
        [&](u32 row) { return attention.sinks ? attention.sinks + first_head + row : (const float*)0; },
        [&](u32 row, u32 dimension, float value) {
            if (attention.y) attention.y[(first_head + row) * attention.head_dim + dimension] = value;
            rotated[row * attention.head_dim + dimension] = value;
        });
    if (!attention.codes) return;
    // The heads are multiples of 32 wide: a warp makes a record of neighbours.
    __syncthreads();
    const u32 first = first_head * attention.head_dim;
    for (u32 element = threadIdx.x; element < heads * attention.head_dim; element += 32 * STEP_WARPS) {
        quantize_warp(rotated[element], attention.codes, attention.sums, (first + element) / 32);
    }
}
