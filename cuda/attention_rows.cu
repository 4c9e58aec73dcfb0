// attention for prefill: causal softmax attention of each token over its sequence's cached positions; see
// common/attention_tile.cuh for the formula, the arguments and the order of every sum.
//
// Compiled per padded head size: -DHEAD_DIM_PADDED=32, 64, 96 or 128 (head_dim a multiple of 8, at most that).
// Grid (kv heads * head groups, ceil(tokens / 4 tokens per warp)), 128 threads, RowsShared of shared memory. A warp takes 16
// rows (tokens x query heads of one kv head) through all their tiles; the CTA's warps share the tiles, which are copied to
// shared memory one ahead. CTAs of the last tokens see most and go first, all heads of them. Bound by the tensor cores. The
// bits are those of attention.cu.
#include "common/attention_tile.cuh"

#define D HEAD_DIM_PADDED
#define ATTENTION_WARPS 4
#define ALL_LANES 0xffffffffu

// Chunks of 16 bytes from one cached row to the next: lanes that read at once, eight of a phase, meet no bank twice, but for keys
// of 128, which would not fit the shared memory of 8.6.
#define VALUE_STRIDE (D / 8 + 1)
#define KEY_STRIDE (D >= 96 ? D / 8 : D / 8 + 1)

// Queries stay in registers where heads are small.
#define QUERIES_IN_REGISTERS (D <= 64)

// Positions of a tile that a warp copies, and lanes that copy one position: whole lines of memory where heads have them.
#define WARP_POSITIONS (ATTENTION_TILE / ATTENTION_WARPS)
#define POSITION_LANES (D % 64 == 0 ? 8 : 4)

// CTAs that a multiprocessor should hold.
#define ROWS_CTAS (D <= 64 ? 3 : 2)

// Groups of eight output dimensions that are summed at once.
#define OUTPUT_GROUPS (D <= 32 ? D / 8 : D / 16)

struct RowsStage {
    Words4 keys[ATTENTION_TILE][KEY_STRIDE];
    Words4 values[ATTENTION_TILE][VALUE_STRIDE];
};

struct RowsShared {
    RowsStage stages[2];
#if !QUERIES_IN_REGISTERS
    QueryFragments<D> queries[ATTENTION_WARPS];
#endif
};

static_assert(sizeof(RowsShared) == ROWS_SHARED_BYTES, "host and device disagree on the shared memory");

// A warp's queries as the tensor cores take them, as sums of two binary16.
struct RowQueries {
#if QUERIES_IN_REGISTERS
    Words4 high[D / 16];
    Words4 low[D / 16];
#else
    const Words4 (*at)[32][2];
#endif
};

__device__ __forceinline__ u32 warp_max(u32 x) { return __reduce_max_sync(ALL_LANES, x); }
__device__ __forceinline__ u32 warp_min(u32 x) { return ~__reduce_max_sync(ALL_LANES, ~x); }

// Tokens [begin, end) of one sequence, and what they see.
struct Run {
    u32 sequence;
    u32 begin;
    u32 end;
    u32 first_tile;
    u32 last;  // largest position
};

// The run of tokens from `begin` on. A CTA has at most 64 of them, two a lane.
__device__ __forceinline__ Run next_run(const AttentionArgs& args, u32 begin, u32 end, u32 lane) {
    Run run;
    u32 sequence[2], position[2], others[2];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const u32 token = begin + 32 * i + lane;
        sequence[i] = NO_SLOT;
        position[i] = 0;
        if (token < end) {
            sequence[i] = args.sequences[token];
            position[i] = args.positions[token];
        }
    }
    run.sequence = __shfl_sync(ALL_LANES, sequence[0], 0);
    run.begin = begin;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        others[i] = __ballot_sync(ALL_LANES, begin + 32 * i + lane >= end || sequence[i] != run.sequence);
    }
    const u32 tokens = others[0] ? __ffs(others[0]) - 1 : others[1] ? 31 + __ffs(others[1]) : 64;
    run.end = begin + tokens;
    const bool has[2] = {lane < tokens, 32 + lane < tokens};
    const u32 least = min(has[0] ? position[0] : 0xffffffffu, has[1] ? position[1] : 0xffffffffu);
    run.first_tile = first_tile(args, warp_min(least));
    run.last = warp_max(max(has[0] ? position[0] : 0, has[1] ? position[1] : 0));
    return run;
}

// Where the positions are that a warp copies, tile after tile; each lane looks one up (the upper half of them again).
struct CopyCursor {
    const u32* table;  // of the sequence
    u32 position;
    u32 logical;       // block of the position
    u32 offset;        // inside it
    u32 block;         // where that is, asked for a tile before it is used
    u32 block_offset;
    u32 blocks_per_tile;
    u32 rest;          // of a tile, in the next block

    __device__ __forceinline__ void open(const AttentionArgs& args, const Run& run, u32 warp, u32 lane) {
        table = args.block_table + (u64)run.sequence * args.table_width;
        position = run.first_tile * ATTENTION_TILE + WARP_POSITIONS * warp + lane % WARP_POSITIONS;
        logical = position / args.block_size;
        offset = position % args.block_size;
        blocks_per_tile = ATTENTION_TILE / args.block_size;
        rest = ATTENTION_TILE % args.block_size;
    }

    // Asks for the block of this tile's position and goes on to the next tile's.
    __device__ __forceinline__ void advance(const AttentionArgs& args, const Run& run) {
        block = NO_BLOCK;
        block_offset = offset;
        if (position <= run.last && logical < args.table_width) block = load_ahead(table + logical);
        position += ATTENTION_TILE;
        logical += blocks_per_tile;
        offset += rest;
        if (offset >= args.block_size) {
            offset -= args.block_size;
            ++logical;
        }
    }

    __device__ __forceinline__ u32 slot(const AttentionArgs& args) const {
        return block < args.num_blocks ? block * args.block_size + block_offset : NO_SLOT;
    }
};

// Where a lane copies from and to: its chunk of the warp's first positions.
struct CopyLane {
    SharedAddress keys_to;  // in the first stage
    SharedAddress values_to;
    const u8* keys;
    const u8* values;

    __device__ __forceinline__ CopyLane(const AttentionArgs& args, RowsShared& shared, u32 kv_head, u32 warp, u32 lane) {
        const u32 row = WARP_POSITIONS * warp + lane / POSITION_LANES;
        const u32 chunk = lane % POSITION_LANES;
        keys_to = shared_address(&shared.stages[0].keys[row][chunk]);
        values_to = shared_address(&shared.stages[0].values[row][chunk]);
        const u64 place = (u64)kv_head * args.head_dim + 8 * chunk;
        keys = (const u8*)(args.keys + place);
        values = (const u8*)(args.values + place);
    }

    // Starts the copy of the warp's positions of a tile to the stage so many bytes behind the first; zeros beyond the head and
    // where there is no slot. `own`: the slot of the warp's position lane % WARP_POSITIONS.
    __device__ __forceinline__ void start(const AttentionArgs& args, u32 stage, u32 own, u32 lane) const {
        constexpr u32 AT_ONCE = 32 / POSITION_LANES;
        const u32 stride = 2 * args.num_kv_heads * args.head_dim;
        const u32 chunk = lane % POSITION_LANES;
        const SharedAddress key = keys_to + stage;
        const SharedAddress value = values_to + stage;
#pragma unroll
        for (u32 i = 0; i < WARP_POSITIONS; i += AT_ONCE) {
            const u32 slot = __shfl_sync(ALL_LANES, own, i + lane / POSITION_LANES);
            const u64 place = (u64)(slot == NO_SLOT ? 0 : slot) * stride;
#pragma unroll
            for (u32 j = 0; j < D / 8; j += POSITION_LANES) {
                const bool valid = slot != NO_SLOT && 8 * (j + chunk) < args.head_dim;
                copy_async(key + 16 * (KEY_STRIDE * i + j), keys + place + 16 * j, valid);
                copy_async(value + 16 * (VALUE_STRIDE * i + j), values + place + 16 * j, valid);
            }
        }
        commit_copies();
    }
};

// A run, and the tiles of it that a warp works on.
struct RunTiles {
    Run run;
    CopyCursor cursor;  // at the tile behind the one last copied
    i32 position[2];    // of rows g and g + 8; -1: takes no part
    u32 last_tile;      // of the CTA
    u32 from;           // tiles [from, to) are those that any of the warp's rows sees anything of
    u32 to;
    u32 whole_from;     // tiles [whole_from, whole_to) those that all see whole
    u32 whole_to;

    // Finds the run from token `begin` on and starts the copy of its first tile to the first stage.
    __device__ __forceinline__ void open(const AttentionArgs& args, const LaneRows& rows, u32 begin, u32 end, const CopyLane& copy,
                                         u32 warp, u32 lane) {
        run = next_run(args, begin, end, lane);
        cursor.open(args, run, warp, lane);
        cursor.advance(args, run);
        last_tile = run.last / ATTENTION_TILE;
        bool all = true;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const bool takes_part = rows.live[r] && rows.token[r] >= run.begin && rows.token[r] < run.end;
            position[r] = takes_part ? (i32)args.positions[rows.token[r]] : -1;
            all = all && takes_part;
        }
        all = __all_sync(ALL_LANES, all);
        // Rows that take no part are largest as unsigned numbers, and least as positions one on.
        const u32 low = warp_min(min((u32)position[0], (u32)position[1]));
        const u32 beyond = warp_max(max((u32)(position[0] + 1), (u32)(position[1] + 1)));
        from = beyond == 0 ? NO_SLOT : first_tile(args, low);
        to = (beyond + ATTENTION_TILE - 1) / ATTENTION_TILE;
        whole_from = args.window == 0 || beyond <= args.window ? 0 : (beyond - args.window + ATTENTION_TILE - 1) / ATTENTION_TILE;
        whole_to = all ? (low + 1) / ATTENTION_TILE : 0;
        copy.start(args, 0, cursor.slot(args), lane);
        cursor.advance(args, run);
    }
};

// The rows' queries as they lie in memory: dimensions t D/4 .. of rows g and g + 8, zeros beyond the head and in rows that do
// not live.
struct RawQueries {
    Words4 at[2][D / 16];

    __device__ __forceinline__ void load(const AttentionArgs& args, const LaneRows& rows, u32 lane) {
        const u32 first = lane % 4 * (D / 4);
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            const float* row = args.q + ((u64)rows.token[r] * args.heads + rows.head[r]) * args.head_dim + first;
#pragma unroll
            for (u32 i = 0; i < D / 16; ++i) {
                at[r][i] = {0, 0, 0, 0};
                if (rows.live[r] && first + 4 * i < args.head_dim) at[r][i] = load_ahead((const Words4*)(row + 4 * i));
            }
        }
    }
};

// What `load_queries` of attention_tile.cuh makes of them; `unscale` is the inverse of each row's power of two.
__device__ __forceinline__ void make_queries(const AttentionArgs& args, const RawQueries& raw, Words4 (*shared)[32][2], u32 lane,
                                             RowQueries& queries, float (&unscale)[2]) {
    const float factor = args.scale * LOG2_E;
    float q[2][D / 4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float largest = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
            q[r][4 * i] = __uint_as_float(raw.at[r][i].x) * factor;
            q[r][4 * i + 1] = __uint_as_float(raw.at[r][i].y) * factor;
            q[r][4 * i + 2] = __uint_as_float(raw.at[r][i].z) * factor;
            q[r][4 * i + 3] = __uint_as_float(raw.at[r][i].w) * factor;
        }
#pragma unroll
        for (int i = 0; i < D / 4; ++i) largest = fmaxf(largest, fabsf(q[r][i]));
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
#if QUERIES_IN_REGISTERS
        queries.high[step] = high;
        queries.low[step] = low;
#else
        shared[step][lane][0] = high;
        shared[step][lane][1] = low;
#endif
    }
#if !QUERIES_IN_REGISTERS
    queries.at = shared;
    __syncwarp();
#endif
}

// Scores of the 64 keys, of queries as they are scaled. `lane_keys`: chunk t D/32 of key g of the first eight.
__device__ __forceinline__ void score_keys(const Words4* lane_keys, const RowQueries& queries, u32 lane, float (&s)[8][4]) {
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) s[n][c] = 0.0f;
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
        Words4 keys[8];
#pragma unroll
        for (int n = 0; n < 8; ++n) keys[n] = lane_keys[8 * n * KEY_STRIDE + i];
#pragma unroll
        for (int step = 2 * i; step < 2 * i + 2; ++step) {
#if QUERIES_IN_REGISTERS
            const Words4 high = queries.high[step];
            const Words4 low = queries.low[step];
#else
            const Words4 high = queries.at[step][lane][0];
            const Words4 low = queries.at[step][lane][1];
#endif
            const u32 a_high[4] = {high.x, high.y, high.z, high.w};
            const u32 a_low[4] = {low.x, low.y, low.z, low.w};
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                mma_f16_k16(s[n], a_high, step % 2 ? keys[n].z : keys[n].x, step % 2 ? keys[n].w : keys[n].y);
            }
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                mma_f16_k16(s[n], a_low, step % 2 ? keys[n].z : keys[n].x, step % 2 ? keys[n].w : keys[n].y);
            }
        }
    }
}

// Scores of positions that the rows do not see become -infinity; `position` and the tile as in `attend_tile`.
__device__ __forceinline__ void mask_scores(const AttentionArgs& args, const i32 (&position)[2], u32 tile, u32 lane,
                                            float (&s)[8][4]) {
    const u32 window = args.window == 0 ? 0x7fffffff : args.window;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        // How far the lane's first key lies behind; keys ahead are far behind as unsigned numbers.
        const i32 behind = position[r] - (i32)(tile * ATTENTION_TILE + 2 * (lane % 4));
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float& score = s[n][2 * r + c];
                score = (u32)(behind - (8 * n + c)) < window ? score : -INFINITY_F32;
            }
    }
}

// Turns scores into probabilities. The largest score is scaled and not all: a product with a power of two is exact, so that the
// fused multiply-add rounds as the difference of scaled scores does.
__device__ __forceinline__ void row_probabilities(const float (&unscale)[2], float (&s)[8][4], RowSoftmax (&softmax)[2]) {
    float largest[2] = {-INFINITY_F32, -INFINITY_F32};
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) largest[c / 2] = fmaxf(largest[c / 2], s[n][c]);
    float m[2], shift[2], l[2] = {0.0f, 0.0f};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float scaled = quad_max(largest[r]) * unscale[r];
        const bool empty = scaled == -INFINITY_F32;
        m[r] = empty ? -INFINITY_F32 : ceilf(scaled) - PROBABILITY_BITS;
        // What an empty row subtracts does not matter: 2^(-inf) is zero, as is that of every masked score.
        shift[r] = empty ? 0.0f : m[r];
    }
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            s[n][c] = exp2_approx(fmaf(s[n][c], unscale[c / 2], -shift[c / 2]));
            l[c / 2] += s[n][c];
        }
#pragma unroll
    for (int r = 0; r < 2; ++r) softmax[r] = {m[r], quad_sum(l[r])};
}

// Joins a tile's outputs, the product of probabilities and values, to what is so far. `lane_values`: chunk lane / 16 of position
// lane % 16, whose address this lane gives for transposed loads.
__device__ __forceinline__ void join_values(const Words4* lane_values, const float (&s)[8][4], const JoinFactors (&factors)[2],
                                            RowOutputs<D>& out) {
    // Outputs are not touched where all of a warp's rows keep their largest score.
    if (__any_sync(ALL_LANES, factors[0].old != 1.0f || factors[1].old != 1.0f)) {
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int c = 0; c < 4; ++c) out.at[n][c] = __fmul_rn(out.at[n][c], factors[c / 2].old);
    }
    u32 high[4][4], low[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        split_halves(s[2 * step][0], s[2 * step][1], high[step][0], low[step][0]);
        split_halves(s[2 * step][2], s[2 * step][3], high[step][1], low[step][1]);
        split_halves(s[2 * step + 1][0], s[2 * step + 1][1], high[step][2], low[step][2]);
        split_halves(s[2 * step + 1][2], s[2 * step + 1][3], high[step][3], low[step][3]);
    }
#pragma unroll
    for (int first = 0; first < D / 8; first += OUTPUT_GROUPS) {
        float sums[OUTPUT_GROUPS][4];
#pragma unroll
        for (int n = 0; n < OUTPUT_GROUPS; ++n)
#pragma unroll
            for (int c = 0; c < 4; ++c) sums[n][c] = 0.0f;
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            u32 v[OUTPUT_GROUPS / 2][4];
#pragma unroll
            for (int n = 0; n < OUTPUT_GROUPS / 2; ++n) {
                load_transposed(v[n], lane_values + 16 * step * VALUE_STRIDE + first + 2 * n);
            }
#pragma unroll
            for (int n = 0; n < OUTPUT_GROUPS; ++n) mma_f16_k16(sums[n], high[step], v[n / 2][n % 2 * 2], v[n / 2][n % 2 * 2 + 1]);
#pragma unroll
            for (int n = 0; n < OUTPUT_GROUPS; ++n) mma_f16_k16(sums[n], low[step], v[n / 2][n % 2 * 2], v[n / 2][n % 2 * 2 + 1]);
        }
#pragma unroll
        for (int n = 0; n < OUTPUT_GROUPS; ++n)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                out.at[first + n][c] = fmaf(sums[n][c], factors[c / 2].next, out.at[first + n][c]);
            }
    }
}

KERNEL(ATTENTION_ROWS, AttentionArgs, 32 * ATTENTION_WARPS, ROWS_CTAS) {
    DYNAMIC_SHARED(u8, memory);
    RowsShared& shared = *(RowsShared*)memory;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 lane = kept(threadIdx.x % 32);
    const u32 warp = threadIdx.x / 32;
    const RowShape shape = row_shape(args);
    const u32 kv_head = blockIdx.x / shape.head_groups;
    const u32 tokens = *args.tokens;
    const u32 per_cta = ATTENTION_WARPS * shape.tokens;
    const u32 begin = (gridDim.y - 1 - blockIdx.y) * per_cta;
    if (begin >= tokens) return;
    const u32 end = begin + per_cta < tokens ? begin + per_cta : tokens;
    const u32 first = begin + warp * shape.tokens;
    const u32 own_end = first + shape.tokens < end ? first + shape.tokens : end;
    // A warp beyond the end has no live rows, and reads a token that exists.
    LaneRows rows = lane_rows(shape, first < end ? first : begin, first < end ? own_end : begin, kv_head,
                              blockIdx.x % shape.head_groups, lane);
    RawQueries raw;
    raw.load(args, rows, lane);
    const CopyLane copy(args, shared, kv_head, warp, lane);
    // Where this lane reads in a stage.
    const u32 lane_keys = kept(16 * (lane / 4 * KEY_STRIDE + lane % 4 * (D / 32)));
    const u32 lane_values = kept((u32)sizeof(RowsStage::keys) + 16 * (lane % 16 * VALUE_STRIDE + lane / 16));
    RunTiles run;
    run.open(args, rows, begin, end, copy, warp, lane);
    RowQueries queries;
    float unscale[2];
#if QUERIES_IN_REGISTERS
    make_queries(args, raw, 0, lane, queries, unscale);
#else
    make_queries(args, raw, shared.queries[warp].at, lane, queries, unscale);
#endif
    RowSoftmax state[2] = {{-INFINITY_F32, 0.0f}, {-INFINITY_F32, 0.0f}};
    RowOutputs<D> out;
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) out.at[n][c] = 0.0f;
#pragma unroll 1
    for (u32 tile = run.run.first_tile, stage = 0;;) {
        wait_copies<0>();
        // The tile is there, and everybody has left the one before.
        __syncthreads();
        const u32 current = stage;
        stage = sizeof(RowsStage) - stage;
        if (tile < run.last_tile) {
            copy.start(args, stage, run.cursor.slot(args), lane);
            run.cursor.advance(args, run.run);
        }
        if (tile >= run.from && tile < run.to) {
            float s[8][4];
            score_keys((const Words4*)(memory + current + lane_keys), queries, lane, s);
            if (tile < run.whole_from || tile >= run.whole_to) mask_scores(args, run.position, tile, lane, s);
            RowSoftmax softmax[2];
            row_probabilities(unscale, s, softmax);
            const JoinFactors factors[2] = {join(state[0], softmax[0]), join(state[1], softmax[1])};
            join_values((const Words4*)(memory + current + lane_values), s, factors, out);
        }
        if (++tile <= run.last_tile) continue;
        if (run.run.end == end) break;
        __syncthreads();
        run.open(args, rows, run.run.end, end, copy, warp, lane);
        tile = run.run.first_tile;
        stage = 0;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (!rows.live[r]) continue;
        const float factor = finish(state[r], args.sinks ? args.sinks + rows.head[r] : 0);
        float* y = args.y + ((u64)rows.token[r] * args.heads + rows.head[r]) * args.head_dim;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            const u32 dimension = 8 * n + 2 * (lane % 4);
            if (dimension >= args.head_dim) continue;
            *(float2*)(y + dimension) = make_float2(out.at[n][2 * r] * factor, out.at[n][2 * r + 1] * factor);
        }
    }
}
