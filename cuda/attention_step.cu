// rope, rope, kv_write and attention of a step of one token; see common/attention_tile.cuh for the formula and the order of
// every sum.
//
// Compiled per padded head size: -DHEAD_DIM_PADDED=32, 64, 96 or 128 (head_dim a multiple of 8, at most that).
// Grid: (1, kv heads * head groups, tile groups), 512 threads, 256 for heads above 64. Each CTA rotates its own query heads;
// the CTA with the tile of the token's own position rotates the key too, stores it with the value and keeps both at hand. A
// team of four warps shares a tile: each scores two groups of eight keys, and multiplies some of the dimensions of the values.
// Tiles are joined through shared memory when one CTA has them all, else by the last CTA to arrive.
// What does not come from the previous kernel is read before that has ended: counts, positions, angles, and all cached keys
// and values but the token's own, which earlier steps have left. What remains is a chain of five barriers. Reads each cached
// position once per kv head; bound by latency for short contexts, by memory for long ones. The bits are those of rope,
// kv_write, attention and linear_quantize one after the other.
#include "common/arrival.cuh"
#include "common/attention_join.cuh"
#include "common/quantize_warp.cuh"
#include "common/rotation.cuh"

#define D HEAD_DIM_PADDED
#define TEAMS (D <= 64 ? 4 : 2)
#define TEAM_WARPS 4
#define STEP_THREADS (TEAMS * TEAM_WARPS * 32)
#define WARP_ROWS 16
// Columns n of the values' product (RowOutputs) that a warp takes: an even number.
#define WARP_COLUMNS (D <= 64 ? 2 : 4)
// Floats from one row of queries to the next: two neighbours' quads meet no bank twice.
#define QUERY_STRIDE (D + 16)
// A thread has one dimension of a head, or none, and every ELEMENT_ROWS-th row.
#define ELEMENT_ROWS (STEP_THREADS / ELEMENT_WIDTH)

struct AttentionStepArgs {
    AttentionArgs attention;  // q not rotated yet; y may be null where records are all that is wanted
    Rotation rotation;
    const float* k;    // [kv heads * head_dim], not rotated yet
    const float* v;
    const u32* slots;  // the token's slot
    u32 num_slots;
    u32 reserved;
};

// What every thread of the CTA sees.
struct StepShared {
    QueryFragments<D> queries;
    float rotated[WARP_ROWS * QUERY_STRIDE];  // rows beyond the heads are anything
    float unscale[WARP_ROWS];
    float sinks[WARP_ROWS];
    alignas(16) u16 own_key[D];
    alignas(16) u16 own_value[D];
};

// A thread's dimension of the heads, with its angle: found before the previous kernel has ended.
struct ElementRotation {
    u32 dimension;
    RotationPlace place;
    float cosine;
    float sine;

    __device__ __forceinline__ ElementRotation(const Rotation& rotation, u32 position) {
        dimension = threadIdx.x % ELEMENT_WIDTH;
        place = rotation_place(rotation, dimension);
        cosine = sine = NAN_F32;
        if (place.rotates && position < rotation.table_rows) {
            const float* angles = rotation.table + (u64)position * rotation.rotated;
            cosine = angles[place.frequency];
            sine = angles[rotation.rotated / 2 + place.frequency];
        }
    }

    __device__ __forceinline__ float turned(float own, float other) const {
        return place.rotates ? rotate(place, own, other, cosine, sine) : own;
    }
};

// Rotates the queries of the CTA's heads and, where `holds_own`, the token's key, which goes with its value to the cache and
// to shared memory. Dimensions beyond the head are zeros.
__device__ __forceinline__ void take_inputs(const AttentionStepArgs& args, const ElementRotation& element, u32 first_head,
                                            u32 heads, u32 kv_head, u32 slot, bool holds_own, StepShared& shared) {
    const u32 head_dim = args.attention.head_dim;
    const u32 dimension = element.dimension;
    const u32 row = threadIdx.x / ELEMENT_WIDTH;
    const bool lives = dimension < head_dim;
    const bool takes_key = holds_own && row == ELEMENT_ROWS - 1;
    const bool takes_value = holds_own && row == ELEMENT_ROWS - 2;
    // All are asked for before the first is used.
    float key[2] = {0.0f, 0.0f};
    float value = 0.0f;
    if (takes_key && lives) {
        const float* from = args.k + kv_head * head_dim + dimension;
        key[0] = from[0];
        key[1] = from[element.place.partner];
    }
    if (takes_value && lives) value = args.v[kv_head * head_dim + dimension];
#pragma unroll 1
    for (u32 r = row; r < heads; r += ELEMENT_ROWS) {
        float own = 0.0f;
        if (lives) {
            const float* from = args.attention.q + (first_head + r) * head_dim + dimension;
            own = element.turned(from[0], from[element.place.partner]);
        }
        if (dimension < D) shared.rotated[r * QUERY_STRIDE + dimension] = own;
    }
    if (!takes_key && !takes_value) return;
    const u16 half = float_to_half(takes_key ? element.turned(key[0], key[1]) : value);
    if (dimension < D) (takes_key ? shared.own_key : shared.own_value)[dimension] = lives ? half : 0;
    if (slot >= args.num_slots || !lives) return;
    const u64 to = ((u64)slot * args.attention.num_kv_heads + kv_head) * head_dim + dimension;
    ((u16*)(takes_key ? args.attention.keys : args.attention.values))[to] = half;
}

// Results of a tile: m and l of each row, then the rows' outputs.
struct alignas(8) TileResults {
    float softmax[WARP_ROWS][2];
    float out[WARP_ROWS][D];
};

// Scores of a tile as the tensor cores leave them: of key group n and lane 4g + t, keys 2t and 2t + 1 of rows g and g + 8.
struct TileScores {
    Floats4 at[8][32];
};

// The queries as `load_queries` makes them; a warp makes one step of the contraction. `both`: whether any row from 8 on lives.
__device__ __forceinline__ void make_fragments(float factor, bool both, u32 step, u32 lane, StepShared& shared) {
    Words4 high = {0, 0, 0, 0};
    Words4 low = {0, 0, 0, 0};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (r == 1 && !both) break;
        const u32 row = lane / 4 + 8 * r;
        const Floats4* quads = (const Floats4*)(shared.rotated + row * QUERY_STRIDE);
        // A power of two is made of it, and rounding keeps the order: multiplied once, it is the largest of the products.
        float largest[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (u32 i = 0; i < D / 16; ++i) {
            const Floats4 four = quads[4 * i + lane % 4];
#pragma unroll
            for (int j = 0; j < 4; ++j) largest[j] = fmaxf(largest[j], fabsf(four.at[j]));
        }
        const float of_lane = fmaxf(fmaxf(largest[0], largest[1]), fmaxf(largest[2], largest[3]));
        float unscale;
        const float normalise = query_scale(quad_max(of_lane) * fabsf(factor), unscale);
        if (step == 0) shared.unscale[row] = unscale;
        const Floats4 own = quads[lane % 4 * (D / 16) + step];
        split_halves(own.at[0] * factor * normalise, own.at[1] * factor * normalise, r == 0 ? high.x : high.y,
                     r == 0 ? low.x : low.y);
        split_halves(own.at[2] * factor * normalise, own.at[3] * factor * normalise, r == 0 ? high.z : high.w,
                     r == 0 ? low.z : low.w);
    }
    shared.queries.at[step][lane][0] = high;
    shared.queries.at[step][lane][1] = low;
}

// Keys of two groups of eight and the warp's columns of the values, on their way.
struct WarpTile {
    CachedHalves<D / 4> keys[2];
    CachedHalves<WARP_COLUMNS> values[4][4];
    u32 own;  // which of the tile's positions is the token's own and comes from shared memory: 64 or more for none

    // All but the own position, which is at `slot`.
    __device__ __forceinline__ void load(const AttentionArgs& args, u32 sequence, u32 kv_head, u32 tile, u32 position, u32 slot,
                                         u32 part, u32 lane) {
        TileSlots slots = tile_slots(args, sequence, tile, position, lane);
        own = position - tile * ATTENTION_TILE;
        // A step whose key goes elsewhere, or nowhere, finds in the cache what is there.
        const u32 held = slots.of(own % ATTENTION_TILE);
        if (held != slot || held == NO_SLOT) own = ATTENTION_TILE;
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (lane + 32 * i == own) slots.slot[i] = NO_SLOT;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const u32 at = slots.of(8 * (2 * part + n) + lane / 4);
            keys[n] = load_cached<D / 4>(args, args.keys, kv_head, at, lane % 4 * (D / 4));
        }
        const bool has_columns = part * WARP_COLUMNS < D / 8;
#pragma unroll
        for (int step = 0; step < 4; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const u32 at = slots.of(16 * step + 8 * (i / 2) + 2 * (lane % 4) + i % 2);
                const u32 dimension = lane / 4 * (D / 8) + part * WARP_COLUMNS;
                values[step][i] = load_columns<WARP_COLUMNS>(args, kv_head, has_columns ? at : NO_SLOT, dimension);
            }
    }

    // Puts the token's own key and value in their places.
    __device__ __forceinline__ void add_own(const StepShared& shared, u32 part, u32 lane) {
        if (own >= ATTENTION_TILE) return;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            if (8 * (2 * part + n) + lane / 4 != own) continue;
            const u32* from = (const u32*)(shared.own_key + lane % 4 * (D / 4));
#pragma unroll
            for (int i = 0; i < D / 8; ++i) keys[n].words[i] = from[i];
        }
        if (part * WARP_COLUMNS >= D / 8) return;
        const u32* from = (const u32*)(shared.own_value + lane / 4 * (D / 8) + part * WARP_COLUMNS);
#pragma unroll
        for (int step = 0; step < 4; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (16 * step + 8 * (i / 2) + 2 * (lane % 4) + i % 2 != own) continue;
#pragma unroll
                for (int w = 0; w < WARP_COLUMNS / 2; ++w) values[step][i].words[w] = from[w];
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
// `out_of(r)`. `both`: whether any second row takes part.
template <class SoftmaxOf, class OutOf>
__device__ __forceinline__ void mix(const AttentionArgs& args, const WarpTile& tile, const TileScores& scores,
                                    const float (&unscale)[2], const i32 (&position)[2], u32 first_position, bool both, u32 part,
                                    u32 lane, const SoftmaxOf& softmax_of, const OutOf& out_of) {
    float s[8][4];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
        const Floats4 four = scores.at[n][lane];
#pragma unroll
        for (int c = 0; c < 4; ++c) s[n][c] = four.at[c];
    }
    RowSoftmax softmax[2];
    softmax[0] = row_softmax<0>(args, s, unscale[0], position[0], first_position, lane);
    softmax[1] = {-INFINITY_F32, 0.0f};
    if (both) softmax[1] = row_softmax<1>(args, s, unscale[1], position[1], first_position, lane);
    float out[WARP_COLUMNS][4];
#pragma unroll
    for (int n = 0; n < WARP_COLUMNS; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) out[n][c] = 0.0f;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        u32 a_high[4] = {0, 0, 0, 0};
        u32 a_low[4] = {0, 0, 0, 0};
        split_halves(s[2 * step][0], s[2 * step][1], a_high[0], a_low[0]);
        split_halves(s[2 * step + 1][0], s[2 * step + 1][1], a_high[2], a_low[2]);
        if (both) {
            split_halves(s[2 * step][2], s[2 * step][3], a_high[1], a_low[1]);
            split_halves(s[2 * step + 1][2], s[2 * step + 1][3], a_high[3], a_low[3]);
        }
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

// Registers that leave room for a CTA of the product before and of the one behind: 96 of 512 threads, 128 of 256. Heads of 128
// would spill.
#define STEP_BOUNDS D <= 64 ? 640 : STEP_THREADS, D == 96 ? 2 : 1

KERNEL(ATTENTION_STEP, AttentionStepArgs, STEP_BOUNDS) {
    __shared__ StepShared shared;
    __shared__ TileScores scores[TEAMS];
    __shared__ TileResults results[TEAMS];
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
    const u32 own = tokens > 0 ? attention.positions[0] : 0;
    const u32 sequence = tokens > 0 ? attention.sequences[0] : 0;
    const u32 slot = tokens > 0 ? args.slots[0] : 0;
    const u32 begin = first_tile(attention, own);
    u32 count = own / ATTENTION_TILE + 1 - begin;
    count = count < attention.tiles ? count : attention.tiles;
    // CTAs that have a tile.
    const u32 groups = (count + TEAMS - 1) / TEAMS;
    const u32 active = groups < gridDim.z ? groups : gridDim.z;
    if (tokens == 0 || blockIdx.z >= active) {
        wait_for_previous_kernel();
        allow_next_kernel();
        return;
    }
    const ElementRotation element(args.rotation, own);
    if (attention.sinks && threadIdx.x < heads) shared.sinks[threadIdx.x] = attention.sinks[first_head + threadIdx.x];
    // The tile of the own position is the last. Most often each CTA has one round, and nothing need be divided.
    const bool holds_own = (groups == active ? groups - 1 : (groups - 1) % active) == blockIdx.z;
    const bool both = heads > 8;
    const u32 head[2] = {lane / 4, lane / 4 + 8};
    const i32 position[2] = {head[0] < heads ? (i32)own : -1, head[1] < heads ? (i32)own : -1};
    // One CTA has all tiles, a team at most one.
    const bool alone = count <= TEAMS;
#pragma unroll 1
    for (u32 first = blockIdx.z * TEAMS; first < count; first += active * TEAMS) {
        const u32 u = first + team;
        WarpTile tile;
        if (u < count) tile.load(attention, sequence, kv_head, begin + u, own, slot, part, lane);
        if (first == blockIdx.z * TEAMS) {
            wait_for_previous_kernel();
            allow_next_kernel();
            take_inputs(args, element, first_head, heads, kv_head, slot, holds_own, shared);
            __syncthreads();
            if (warp < D / 16) make_fragments(attention.scale * LOG2_E, both, warp, lane, shared);
        }
        // Queries are made, and scores of the round before have been read.
        __syncthreads();
        if (u < count) {
            tile.add_own(shared, part, lane);
            score(tile, shared.queries, part, lane, scores[team]);
        }
        __syncthreads();
        if (u >= count) continue;
        const float unscale[2] = {shared.unscale[head[0]], shared.unscale[head[1]]};
        const auto index = [&](int r) { return (u64)(first_head + head[r]) * attention.tiles + u; };
        mix(attention, tile, scores[team], unscale, position, (begin + u) * ATTENTION_TILE, both, part, lane,
            [&](int r) { return alone ? results[team].softmax[head[r]] : attention.partial_softmax + 2 * index(r); },
            [&](int r) { return alone ? results[team].out[head[r]] : attention.partial + index(r) * attention.head_dim; });
    }
    if (alone) {
        __syncthreads();
    } else if (!arrives_last(attention.arrivals + blockIdx.y, active)) {
        return;
    }
    const u32 first = first_head * attention.head_dim;
    join_heads<STEP_THREADS>(
        heads, count, attention.head_dim,
        [&](u32 row) {
            constexpr u32 STRIDE = sizeof(TileResults) / 4;
            if (alone) return HeadTiles{results[0].softmax[row], results[0].out[row], STRIDE, STRIDE};
            const u64 index = (u64)(first_head + row) * attention.tiles;
            return HeadTiles{attention.partial_softmax + 2 * index, attention.partial + index * attention.head_dim, 2,
                             attention.head_dim};
        },
        [&](u32 row) { return attention.sinks ? shared.sinks + row : (const float*)0; },
        [&](u32 element, float value) {
            if (attention.y) attention.y[first + element] = value;
            // The heads are multiples of 32 wide then: a warp makes a record of neighbours.
            if (attention.codes) quantize_warp(value, attention.codes, attention.sums, (first + element) / 32);
        });
}
