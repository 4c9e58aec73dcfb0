// rope, rope, kv_write and attention of a step of one token; see common/attention_tile.cuh for the formula and the order of
// every sum.
//
// Compiled per padded head size: -DHEAD_DIM_PADDED=32, 64, 96 or 128 (head_dim a multiple of 8, at most that).
// Grid: (1, kv heads * head groups, tile groups), 384 threads, 256 for heads above 64. Each CTA rotates its own query heads;
// a warp of the team that has the tile of the token's own position first rotates the key and stores it with the value. A team
// of four warps shares a tile: each scores two groups of eight keys, and multiplies some of the dimensions of the values.
// Tiles are joined through shared memory when one CTA has them all, else by the last CTA to arrive. Little code, run once:
// fetching instructions is a good part of what a step of one token waits for.
// What does not come from the previous kernel (counts, positions, block table) is read before that has ended. Reads each
// cached position once per kv head; bound by latency for short contexts, by memory for long ones. The bits are those of rope,
// kv_write, attention and linear_quantize one after the other.
#include "common/arrival.cuh"
#include "common/attention_join.cuh"
#include "common/quantize_warp.cuh"
#include "common/rotation.cuh"

#define D HEAD_DIM_PADDED
#define TEAMS (D <= 64 ? 3 : 2)
#define TEAM_WARPS 4
#define STEP_THREADS (TEAMS * TEAM_WARPS * 32)
#define WARP_ROWS 16
// Columns n of the values' product (RowOutputs) that a warp takes: an even number.
#define WARP_COLUMNS (D <= 64 ? 2 : 4)

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

// Results of a tile: m and l of each row, then the rows' outputs.
struct TileResults {
    float softmax[WARP_ROWS][2];
    float out[WARP_ROWS][D];
};

// Scores of a tile as the tensor cores leave them: of key group n and lane 4g + t, keys 2t and 2t + 1 of rows g and g + 8.
struct TileScores {
    Floats4 at[8][32];
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

// The queries of the CTA's heads as `load_queries` makes them, from `rotated` [heads, head_dim]; a warp makes one step of the
// contraction. `unscale`: of each row.
__device__ __forceinline__ void make_fragments(const float* rotated, u32 heads, u32 head_dim, float scale, u32 step, u32 lane,
                                               QueryFragments<D>& fragments, float* unscale) {
    const u32 first = lane % 4 * (D / 4);
    const float factor = scale * LOG2_E;
    Words4 high, low;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const u32 row = lane / 4 + 8 * r;
        const float* q = rotated + row * head_dim;
        const auto element = [&](u32 i) { return row < heads && first + i < head_dim ? q[first + i] * factor : 0.0f; };
        float largest = 0.0f;
#pragma unroll 4
        for (u32 i = 0; i < D / 4; ++i) largest = fmaxf(largest, fabsf(element(i)));
        largest = quad_max(largest);
        const float normalise = query_scale(largest, unscale[row]);
        const float own[4] = {element(4 * step) * normalise, element(4 * step + 1) * normalise,
                              element(4 * step + 2) * normalise, element(4 * step + 3) * normalise};
        split_halves(own[0], own[1], r == 0 ? high.x : high.y, r == 0 ? low.x : low.y);
        split_halves(own[2], own[3], r == 0 ? high.z : high.w, r == 0 ? low.z : low.w);
    }
    fragments.at[step][lane][0] = high;
    fragments.at[step][lane][1] = low;
}

// Keys of two groups of eight and the warp's columns of the values, on their way.
struct WarpTile {
    CachedHalves<D / 4> keys[2];
    CachedHalves<WARP_COLUMNS> values[4][4];

    __device__ __forceinline__ void load(const AttentionArgs& args, u32 sequence, u32 kv_head, u32 tile, u32 last, u32 part,
                                         u32 lane) {
        const TileSlots slots = tile_slots(args, sequence, tile, last, lane);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const u32 slot = slots.of(8 * (2 * part + n) + lane / 4);
            keys[n] = load_cached<D / 4>(args, args.keys, kv_head, slot, lane % 4 * (D / 4));
        }
        const bool has_columns = part * WARP_COLUMNS < D / 8;
#pragma unroll
        for (int step = 0; step < 4; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const u32 slot = slots.of(16 * step + 8 * (i / 2) + 2 * (lane % 4) + i % 2);
                const u32 dimension = lane / 4 * (D / 8) + part * WARP_COLUMNS;
                values[step][i] =
                    load_columns<WARP_COLUMNS>(args, kv_head, has_columns ? slot : NO_SLOT, dimension);
            }
    }
};

// Scores of the warp's two groups of keys.
__device__ __forceinline__ void score(const WarpTile& tile, const QueryFragments<D>& queries, u32 part, u32 lane,
                                      TileScores& scores) {
    float s[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
        const Words4 high = queries.at[step][lane][0];
        const Words4 low = queries.at[step][lane][1];
        const u32 a_high[4] = {high.x, high.y, high.z, high.w};
        const u32 a_low[4] = {low.x, low.y, low.z, low.w};
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            mma_f16_k16(s[n], a_high, tile.keys[n].words[2 * step], tile.keys[n].words[2 * step + 1]);
            mma_f16_k16(s[n], a_low, tile.keys[n].words[2 * step], tile.keys[n].words[2 * step + 1]);
        }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) scores.at[2 * part + n][lane] = {{s[n][0], s[n][1], s[n][2], s[n][3]}};
}

// Softmax of the lane's rows over the tile, and the product of the warp's columns of the values, to `softmax_of(r)` and
// `out_of(r)`.
template <class SoftmaxOf, class OutOf>
__device__ __forceinline__ void mix(const AttentionArgs& args, const WarpTile& tile, const TileScores& scores,
                                    const float (&unscale)[2], const i32 (&position)[2], u32 first_position, u32 part, u32 lane,
                                    const SoftmaxOf& softmax_of, const OutOf& out_of) {
    float s[8][4];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
        const Floats4 four = scores.at[n][lane];
#pragma unroll
        for (int c = 0; c < 4; ++c) s[n][c] = four.at[c];
    }
    RowSoftmax softmax[2];
    tile_softmax(args, s, unscale, position, first_position, lane, softmax);
    float out[WARP_COLUMNS][4];
#pragma unroll
    for (int n = 0; n < WARP_COLUMNS; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) out[n][c] = 0.0f;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        u32 a_high[4], a_low[4];
        split_halves(s[2 * step][0], s[2 * step][1], a_high[0], a_low[0]);
        split_halves(s[2 * step][2], s[2 * step][3], a_high[1], a_low[1]);
        split_halves(s[2 * step + 1][0], s[2 * step + 1][1], a_high[2], a_low[2]);
        split_halves(s[2 * step + 1][2], s[2 * step + 1][3], a_high[3], a_low[3]);
        const CachedHalves<WARP_COLUMNS>(&v)[4] = tile.values[step];
#pragma unroll
        for (int n = 0; n < WARP_COLUMNS; ++n) {
            // Element n of two positions side by side.
            const u32 selector = n % 2 == 0 ? 0x5410u : 0x7632u;
            const u32 b0 = permute_bytes(v[0].words[n / 2], v[1].words[n / 2], selector);
            const u32 b1 = permute_bytes(v[2].words[n / 2], v[3].words[n / 2], selector);
            mma_f16_k16(out[n], a_high, b0, b1);
            mma_f16_k16(out[n], a_low, b0, b1);
        }
    }
    if (part * WARP_COLUMNS >= D / 8) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (position[r] < 0) continue;
        if (part == 0 && lane % 4 == 0) {
            softmax_of(r)[0] = softmax[r].m;
            softmax_of(r)[1] = softmax[r].l;
        }
        float* to = out_of(r);
#pragma unroll
        for (int n = 0; n < WARP_COLUMNS; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const u32 dimension = (2 * (lane % 4) + c) * (D / 8) + part * WARP_COLUMNS + n;
                if (dimension < args.head_dim) to[dimension] = out[n][2 * r + c];
            }
    }
}

KERNEL(ATTENTION_STEP, AttentionStepArgs, STEP_THREADS, 1) {
    __shared__ QueryFragments<D> queries;
    __shared__ TileScores scores[TEAMS];
    __shared__ TileResults results[TEAMS];
    __shared__ float rotated[WARP_ROWS * D];
    __shared__ float unscales[WARP_ROWS];
    const AttentionArgs& attention = args.attention;
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    const u32 team = warp / TEAM_WARPS;
    const u32 part = warp % TEAM_WARPS;
    const RowShape shape = row_shape(attention);
    const u32 kv_head = blockIdx.y / shape.head_groups;
    const u32 head_group = blockIdx.y % shape.head_groups;
    const u32 first_head = kv_head * shape.group + head_group * WARP_ROWS;
    const u32 left = shape.group - head_group * WARP_ROWS;
    const u32 heads = left < WARP_ROWS ? left : WARP_ROWS;
    const u32 tokens = *attention.tokens;
    const u32 own = attention.positions[0];
    const u32 sequence = attention.sequences[0];
    const u32 slot = args.slots[0];
    const u32 begin = first_tile(attention, own);
    u32 count = own / ATTENTION_TILE + 1 - begin;
    count = count < attention.tiles ? count : attention.tiles;
    // CTAs that have a tile.
    u32 active = (count + TEAMS - 1) / TEAMS;
    active = active < gridDim.z ? active : gridDim.z;
    if (tokens > 0 && part == 0 && blockIdx.z * TEAMS + team < count) {
        request_tile(attention, sequence, kv_head, begin + blockIdx.z * TEAMS + team, own, lane);
    }
    wait_for_previous_kernel();
    allow_next_kernel();
    if (tokens == 0 || blockIdx.z >= active) return;
    for (u32 i = threadIdx.x; i < heads * attention.head_dim; i += STEP_THREADS) {
        rotated[i] = rotated_at(args.rotation, attention.q, first_head * attention.head_dim + i, own);
    }
    // The tile of the own position is the last.
    if (part == 0 && (count - 1) % (active * TEAMS) == blockIdx.z * TEAMS + team) store_own(args, kv_head, own, slot, lane);
    __syncthreads();
    if (warp < D / 16) {
        make_fragments(rotated, heads, attention.head_dim, attention.scale, warp, lane, queries, unscales);
    }
    const u32 head[2] = {lane / 4, lane / 4 + 8};
    const i32 position[2] = {head[0] < heads ? (i32)own : -1, head[1] < heads ? (i32)own : -1};
    // One CTA has all tiles, a team at most one.
    const bool alone = count <= TEAMS;
#pragma unroll 1
    for (u32 first = blockIdx.z * TEAMS; first < count; first += active * TEAMS) {
        const u32 u = first + team;
        WarpTile tile;
        if (u < count) tile.load(attention, sequence, kv_head, begin + u, own, part, lane);
        // Queries are made, and scores of the round before have been read.
        __syncthreads();
        if (u < count) score(tile, queries, part, lane, scores[team]);
        __syncthreads();
        if (u >= count) continue;
        const float unscale[2] = {unscales[head[0]], unscales[head[1]]};
        const auto index = [&](int r) { return (u64)(first_head + head[r]) * attention.tiles + u; };
        mix(attention, tile, scores[team], unscale, position, (begin + u) * ATTENTION_TILE, part, lane,
            [&](int r) { return alone ? results[team].softmax[head[r]] : attention.partial_softmax + 2 * index(r); },
            [&](int r) { return alone ? results[team].out[head[r]] : attention.partial + index(r) * attention.head_dim; });
    }
    if (alone) {
        __syncthreads();
    } else if (!arrives_last(attention.arrivals + blockIdx.y, active)) {
        return;
    }
    join_heads<D, STEP_THREADS>(
        heads, count, attention.head_dim,
        [&](u32 row) {
            if (alone) {
                constexpr u32 STRIDE = sizeof(TileResults) / 4;
                return HeadTiles{results[0].softmax[row], results[0].out[row], STRIDE, STRIDE, true};
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
    for (u32 element = threadIdx.x; element < heads * attention.head_dim; element += STEP_THREADS) {
        quantize_warp(rotated[element], attention.codes, attention.sums, (first + element) / 32);
    }
}
