// Attention of 16 query rows over one tile of 64 cached positions, by one warp: the one arithmetic of every attention
// kernel.
//
// Tiles lie at absolute positions 64 u .. 64 u + 63. Per tile: scores on the tensor cores, queries as the sum of two
// binary16 (so that nothing but the cache's own rounding is lost); m = ceil(largest score) - 14 in units of log2;
// p = 2^(score - m); l = sum p; o = sum p v with p again the sum of two binary16. Tiles are joined in ascending order by
// `join`. Keys and values go from memory straight to registers: lane 4g + t reads dimensions t D/4 .. of key g of a
// group of eight, and dimensions g D/8 .. of values, which permutes a contraction and an output index consistently.
// Tiles and rows that see nothing change no bit. So a row's result depends on its own positions only, not on which other
// rows share its warp, where a prefill chunk begins, or how tiles are spread over warps.
#pragma once
#include "common/approximate.cuh"
#include "common/activation.cuh"
#include "common/async.cuh"
#include "common/inputs.cuh"
#include "common/mma.cuh"

#define ATTENTION_TILE 64
#define LOG2_E 1.44269504f
// Probabilities are kept near 2^14, so that two binary16 hold them to 2^-38.
#define PROBABILITY_BITS 14.0f

// `struct AttentionArgs`.
struct AttentionArgs {
    const float* q;            // [tokens, heads * head_dim]
    const u16* keys;           // [blocks, block_size, num_kv_heads, head_dim] f16
    const u16* values;         // the same
    const u32* positions;      // [tokens]
    const u32* sequences;      // [tokens]
    const u32* block_table;    // [sequences, table_width]
    const u32* tokens;         // live tokens
    const float* sinks;        // [heads] or null
    float* y;                  // [tokens, heads * head_dim]
    float* partial;            // split only: [tokens, heads, tiles, head_dim]
    float* partial_softmax;    // split only: [tokens, heads, tiles] of (m, l)
    u32* arrivals;             // split only: [tokens, kv heads * head groups], zero between launches
    u8* codes;                 // split only: activation records of y, or null
    ActivationSums* sums;
    u32 heads;
    u32 num_kv_heads;
    u32 head_dim;
    u32 block_size;
    u32 num_blocks;
    u32 table_width;
    u32 window;  // 0: none
    u32 tiles;   // split only: most tiles a row sees
    float scale;
    u32 tile_blocks;  // whole blocks of the cache in a tile
};

// value = half(value) + half(rest), for two values.
__device__ __forceinline__ void split_halves(float a, float b, u32& high, u32& low) {
    high = pack_halves(a, b);
    low = pack_halves(a - half_to_float((u16)high), b - half_to_float((u16)(high >> 16)));
}

// Maximum and sum over the four lanes that share a row.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Running softmax of one row.
struct RowSoftmax {
    float m;
    float l;
};

// Factors by which what is so far and what comes are multiplied.
struct JoinFactors {
    float old;
    float next;
};

// Factors for what is joined to a row whose m was `row`; that becomes the m of both.
__device__ __forceinline__ JoinFactors join_factors(float& row, float tile) {
    const float m = fmaxf(row, tile);
    JoinFactors factors;
    factors.old = row == -INFINITY_F32 ? 0.0f : exp2_approx(row - m);
    factors.next = tile == -INFINITY_F32 ? 0.0f : exp2_approx(tile - m);
    row = m;
    return factors;
}

// Sums and outputs of both.
__device__ __forceinline__ float join_output(float row, float tile, const JoinFactors& factors) {
    return fmaf(tile, factors.next, __fmul_rn(row, factors.old));
}

__device__ __forceinline__ JoinFactors join(RowSoftmax& row, const RowSoftmax& tile) {
    const JoinFactors factors = join_factors(row.m, tile.m);
    row.l = join_output(row.l, tile.l, factors);
    return factors;
}

// What the accumulated output is multiplied by in the end; `sink` (null: none) is one more logit, not scaled.
__device__ __forceinline__ float finish(RowSoftmax& row, const float* sink) {
    float factor = 1.0f;
    if (sink) {
        const float logit = __fmul_rn(*sink, LOG2_E);
        const RowSoftmax tile = {ceilf(logit) - PROBABILITY_BITS, exp2_approx(logit - (ceilf(logit) - PROBABILITY_BITS))};
        factor = join(row, tile).old;
    }
    return factor / row.l;
}

// The two rows (g and g + 8) a lane works on.
struct LaneRows {
    u32 token[2];
    u32 head[2];
    bool live[2];
};

// Query fragments of a warp in shared memory: [k step][lane][high a0..a3, low a0..a3].
template <int D>
struct QueryFragments {
    Words4 at[D / 16][32][2];
};

// The power of two that brings a row's largest element to [128, 256), and its inverse.
__device__ __forceinline__ float query_scale(float largest, float& unscale) {
    i32 exponent = 7 + 127 - (i32)(__float_as_uint(largest) >> 23);
    exponent = exponent > 100 ? 100 : exponent < -100 ? -100 : exponent;
    unscale = __uint_as_float((u32)(127 - exponent) << 23);
    return __uint_as_float((u32)(127 + exponent) << 23);
}

// Loads the rows' queries, times scale * log2 e, normalised by a power of two per row; returns its inverse.
template <int D>
__device__ __forceinline__ void load_queries(const AttentionArgs& args, const LaneRows& rows, u32 lane,
                                             QueryFragments<D>& fragments, float (&unscale)[2]) {
    const u32 first = lane % 4 * (D / 4);
    const float factor = args.scale * LOG2_E;
    float q[2][D / 4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float* row = args.q + (u64)rows.token[r] * args.heads * args.head_dim + rows.head[r] * args.head_dim;
        float largest = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 4; ++i) {
            q[r][i] = rows.live[r] && first + i < args.head_dim ? row[first + i] * factor : 0.0f;
            largest = fmaxf(largest, fabsf(q[r][i]));
        }
        const float normalise = query_scale(quad_max(largest), unscale[r]);
#pragma unroll
        for (int i = 0; i < D / 4; ++i) q[r][i] *= normalise;
    }
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
        Words4 high, low;
        split_halves(q[0][4 * step], q[0][4 * step + 1], high.x, low.x);
        split_halves(q[1][4 * step], q[1][4 * step + 1], high.y, low.y);
        split_halves(q[0][4 * step + 2], q[0][4 * step + 3], high.z, low.z);
        split_halves(q[1][4 * step + 2], q[1][4 * step + 3], high.w, low.w);
        fragments.at[step][lane][0] = high;
        fragments.at[step][lane][1] = low;
    }
    __syncwarp();
}

// Output accumulators: [n][c], row g + 8 (c / 2), dimension (2t + c % 2) D/8 + n.
template <int D>
struct RowOutputs {
    float at[D / 8][4];
};

// Where a tile's keys and values are: the cache slot of position 64 tile + lane and of the one 32 further.
struct TileSlots {
    u32 slot[2];

    __device__ __forceinline__ u32 of(u32 position) const {
        const u32 first = __shfl_sync(0xffffffffu, slot[0], position % 32);
        const u32 second = __shfl_sync(0xffffffffu, slot[1], position % 32);
        return position < 32 ? first : second;
    }
};

// Positions beyond `last`, and those whose block is not held, have no slot.
__device__ __forceinline__ TileSlots tile_slots(const AttentionArgs& args, u32 sequence, u32 tile, u32 last, u32 lane) {
    TileSlots slots;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const u32 position = tile * ATTENTION_TILE + 32 * i + lane;
        const u32 logical = position / args.block_size;
        slots.slot[i] = NO_SLOT;
        if (position <= last && logical < args.table_width) {
            const u32 block = args.block_table[(u64)sequence * args.table_width + logical];
            if (block < args.num_blocks) slots.slot[i] = block * args.block_size + position % args.block_size;
        }
    }
    return slots;
}

// `WIDTH` halves from `dimension` on of a cached row, zeros beyond the head and where there is no slot.
template <int WIDTH>
struct CachedHalves {
    u32 words[WIDTH / 2];
};

template <int WIDTH>
__device__ __forceinline__ CachedHalves<WIDTH> load_cached(const AttentionArgs& args, const u16* pool, u32 kv_head, u32 slot,
                                                           u32 dimension) {
    constexpr int STEP = WIDTH % 8 == 0 ? 8 : 4;
    CachedHalves<WIDTH> halves;
    const u16* row = pool + ((u64)slot * args.num_kv_heads + kv_head) * args.head_dim;
#pragma unroll
    for (int i = 0; i < WIDTH; i += STEP) {
        const bool live = slot != NO_SLOT && dimension + i < args.head_dim;
        if constexpr (STEP == 8) {
            Words4 words = {0, 0, 0, 0};
            if (live) words = load_ahead((const Words4*)(row + dimension + i));
            halves.words[i / 2] = words.x;
            halves.words[i / 2 + 1] = words.y;
            halves.words[i / 2 + 2] = words.z;
            halves.words[i / 2 + 3] = words.w;
        } else {
            Words2 words = {0, 0};
            if (live) words = load_ahead((const Words2*)(row + dimension + i));
            halves.words[i / 2] = words.x;
            halves.words[i / 2 + 1] = words.y;
        }
    }
    return halves;
}

// The same of values, a few columns at a time.
template <int WIDTH>
__device__ __forceinline__ CachedHalves<WIDTH> load_columns(const AttentionArgs& args, u32 kv_head, u32 slot, u32 dimension) {
    CachedHalves<WIDTH> halves;
    const u16* row = args.values + ((u64)slot * args.num_kv_heads + kv_head) * args.head_dim + dimension;
    const bool live = slot != NO_SLOT && dimension < args.head_dim;
    if constexpr (WIDTH == 4) {
        Words2 words = {0, 0};
        if (live) words = load_ahead((const Words2*)row);
        halves.words[0] = words.x;
        halves.words[1] = words.y;
    } else {
        halves.words[0] = live ? load_ahead((const u32*)row) : 0;
    }
    return halves;
}

// Values of 16 positions, as one step of the second product takes them: positions 16 step + 2t, + 1, + 8, + 9.
template <int D>
struct StepValues {
    CachedHalves<D / 8> at[4];
};

template <int D>
__device__ __forceinline__ StepValues<D> load_values(const AttentionArgs& args, const TileSlots& slots, u32 kv_head, u32 step,
                                                     u32 lane) {
    StepValues<D> values;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u32 slot = slots.of(16 * step + 8 * (i / 2) + 2 * (lane % 4) + i % 2);
        values.at[i] = load_cached<D / 8>(args, args.values, kv_head, slot, lane / 4 * (D / 8));
    }
    return values;
}

// Masks and scales the scores of row R (g or g + 8) of a tile whose first key is at `first_position`, and turns them into
// probabilities.
template <int R>
__device__ __forceinline__ RowSoftmax row_softmax(const AttentionArgs& args, float (&s)[8][4], float unscale, i32 position,
                                                  u32 first_position, u32 lane) {
    const u32 window = args.window == 0 ? 0x7fffffff : args.window;
    // How far the lane's first key lies behind; a row that takes no part sees nothing.
    const i32 behind = (position < 0 ? -1 : position) - (i32)(first_position + 2 * (lane % 4));
    float largest = -INFINITY_F32;
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            float& score = s[n][2 * R + c];
            // Keys ahead are far behind as unsigned numbers.
            score = (u32)(behind - (8 * n + c)) < window ? score * unscale : -INFINITY_F32;
            largest = fmaxf(largest, score);
        }
    largest = quad_max(largest);
    const bool empty = largest == -INFINITY_F32;
    const float m = empty ? -INFINITY_F32 : ceilf(largest) - PROBABILITY_BITS;
    float l = 0.0f;
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            float& score = s[n][2 * R + c];
            score = score == -INFINITY_F32 ? 0.0f : exp2_approx(score - m);
            l += score;
        }
    return {m, quad_sum(l)};
}

// One tile. `position[r]` is the row's own position, or -1 for a row that takes no part. `last`: the largest of them.
// KEYS groups of eight keys are loaded at a time, VALUES steps of values before the scores are known: a warp that has a
// tile to itself loads all at once, one among many saves registers.
template <int D, int KEYS, int VALUES>
__device__ __forceinline__ void attend_tile(const AttentionArgs& args, const QueryFragments<D>& queries,
                                            const float (&unscale)[2], const i32 (&position)[2], u32 sequence, u32 kv_head,
                                            u32 tile, u32 last, u32 lane, RowSoftmax (&softmax)[2], RowOutputs<D>& out) {
    const u32 g = lane / 4;
    const u32 t = lane % 4;
    const TileSlots slots = tile_slots(args, sequence, tile, last, lane);
    float s[8][4];
    StepValues<D> values[VALUES > 0 ? VALUES : 1];
#pragma unroll
    for (int first = 0; first < 8; first += KEYS) {
        CachedHalves<D / 4> keys[KEYS];
#pragma unroll
        for (int n = 0; n < KEYS; ++n) {
            const u32 slot = slots.of(8 * (first + n) + g);
            keys[n] = load_cached<D / 4>(args, args.keys, kv_head, slot, t * (D / 4));
        }
        if (first + KEYS == 8) {
#pragma unroll
            for (int step = 0; step < VALUES; ++step) values[step] = load_values<D>(args, slots, kv_head, step, lane);
        }
#pragma unroll
        for (int n = 0; n < KEYS; ++n)
#pragma unroll
            for (int c = 0; c < 4; ++c) s[first + n][c] = 0.0f;
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            const Words4 high = queries.at[step][lane][0];
            const Words4 low = queries.at[step][lane][1];
            const u32 a_high[4] = {high.x, high.y, high.z, high.w};
            const u32 a_low[4] = {low.x, low.y, low.z, low.w};
#pragma unroll
            for (int n = 0; n < KEYS; ++n) {
                mma_f16_k16(s[first + n], a_high, keys[n].words[2 * step], keys[n].words[2 * step + 1]);
                mma_f16_k16(s[first + n], a_low, keys[n].words[2 * step], keys[n].words[2 * step + 1]);
            }
        }
    }
    softmax[0] = row_softmax<0>(args, s, unscale[0], position[0], tile * ATTENTION_TILE, lane);
    softmax[1] = row_softmax<1>(args, s, unscale[1], position[1], tile * ATTENTION_TILE, lane);
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) out.at[n][c] = 0.0f;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        u32 a_high[4], a_low[4];
        split_halves(s[2 * step][0], s[2 * step][1], a_high[0], a_low[0]);
        split_halves(s[2 * step][2], s[2 * step][3], a_high[1], a_low[1]);
        split_halves(s[2 * step + 1][0], s[2 * step + 1][1], a_high[2], a_low[2]);
        split_halves(s[2 * step + 1][2], s[2 * step + 1][3], a_high[3], a_low[3]);
        const StepValues<D> v =
            step < VALUES ? values[step < VALUES ? step : 0] : load_values<D>(args, slots, kv_head, step, lane);
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            // Element n of two positions side by side.
            const u32 selector = n % 2 == 0 ? 0x5410u : 0x7632u;
            const u32 b0 = permute_bytes(v.at[0].words[n / 2], v.at[1].words[n / 2], selector);
            const u32 b1 = permute_bytes(v.at[2].words[n / 2], v.at[3].words[n / 2], selector);
            mma_f16_k16(out.at[n], a_high, b0, b1);
            mma_f16_k16(out.at[n], a_low, b0, b1);
        }
    }
}

// Query rows of a warp: 16 rows are `tokens` consecutive tokens of one kv head's query heads, or 16 of those heads.
struct RowShape {
    u32 group;          // query heads per kv head
    u32 tokens;         // per warp
    u32 head_groups;    // warps per token and kv head
};

__device__ __forceinline__ RowShape row_shape(const AttentionArgs& args) {
    RowShape shape;
    shape.group = args.heads / args.num_kv_heads;
    shape.tokens = shape.group < 16 ? 16 / shape.group : 1;
    shape.head_groups = (shape.group + 15) / 16;
    return shape;
}

// Rows g and g + 8 of a warp whose first token is `first`; `end` bounds the tokens.
__device__ __forceinline__ LaneRows lane_rows(const RowShape& shape, u32 first, u32 end, u32 kv_head, u32 head_group, u32 lane) {
    LaneRows rows;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const u32 row = lane / 4 + 8 * r;
        const u32 token = shape.group < 16 ? row / shape.group : 0;
        const u32 head = shape.group < 16 ? row % shape.group : head_group * 16 + row;
        rows.live[r] = token < shape.tokens && first + token < end && head < shape.group;
        rows.token[r] = rows.live[r] ? first + token : first;
        rows.head[r] = kv_head * shape.group + (rows.live[r] ? head : 0);
    }
    return rows;
}

// First tile a token at `position` sees.
__device__ __forceinline__ u32 first_tile(const AttentionArgs& args, u32 position) {
    return args.window == 0 || position < args.window ? 0 : (position - args.window + 1) / ATTENTION_TILE;
}
