// attention for prefill: causal softmax attention of each token over its sequence's cached positions; see
// common/attention_tile.cuh for the formula, the arguments and the order of every sum.
//
// Compiled per padded head size: -DHEAD_DIM_PADDED=32, 64, 96 or 128 (head_dim a multiple of 8, at most that).
// Grid (ceil(tokens / 4 tokens per warp), kv heads * head groups), 128 threads, RowsShared of shared memory. A warp takes 16
// rows (tokens x query heads of one kv head) through all their tiles; the CTA's warps share the tiles, which are copied to
// shared memory one ahead. Bound by the tensor cores. The bits are those of attention.cu.
#include "common/attention_tile.cuh"

#define D HEAD_DIM_PADDED
#define ATTENTION_WARPS 4

// Chunks of 16 bytes from one cached row to the next: lanes that read at once, eight of a phase, meet no bank twice, but for keys
// of 128, which would not fit the shared memory of 8.6.
#define VALUE_STRIDE (D / 8 + 1)
#define KEY_STRIDE (D >= 96 ? D / 8 : D / 8 + 1)

struct RowsStage {
    Words4 keys[ATTENTION_TILE][KEY_STRIDE];
    Words4 values[ATTENTION_TILE][VALUE_STRIDE];
};

struct RowsShared {
    QueryFragments<D> queries[ATTENTION_WARPS];
    RowsStage stages[2];
};

static_assert(sizeof(RowsShared) == ROWS_SHARED_BYTES, "host and device disagree on the shared memory");

// Tokens [begin, end) of one sequence, and what they see.
struct Run {
    u32 sequence;
    u32 begin;
    u32 end;
    u32 first_tile;
    u32 last;  // largest position
};

__device__ __forceinline__ Run next_run(const AttentionArgs& args, u32 begin, u32 end) {
    Run run;
    run.sequence = args.sequences[begin];
    run.begin = begin;
    run.first_tile = first_tile(args, args.positions[begin]);
    run.last = args.positions[begin];
    for (run.end = begin + 1; run.end < end && args.sequences[run.end] == run.sequence; ++run.end) {
        const u32 position = args.positions[run.end];
        const u32 tile = first_tile(args, position);
        run.first_tile = tile < run.first_tile ? tile : run.first_tile;
        run.last = position > run.last ? position : run.last;
    }
    return run;
}

// Cache slot of the position of `tile` that this thread copies, two threads a position.
__device__ __forceinline__ u32 own_slot(const AttentionArgs& args, const Run& run, u32 tile) {
    const u32 position = tile * ATTENTION_TILE + threadIdx.x / 2;
    const u32 logical = position / args.block_size;
    if (position > run.last || logical >= args.table_width) return NO_SLOT;
    const u32 block = args.block_table[(u64)run.sequence * args.table_width + logical];
    return block < args.num_blocks ? block * args.block_size + position % args.block_size : NO_SLOT;
}

// Starts the copy of this thread's half of a position's keys and values; zeros beyond the head and where there is no slot.
__device__ __forceinline__ void copy_tile(const AttentionArgs& args, RowsStage& stage, u32 kv_head, u32 slot) {
    const u32 row = threadIdx.x / 2;
    const u64 place = ((u64)(slot == NO_SLOT ? 0 : slot) * args.num_kv_heads + kv_head) * args.head_dim;
#pragma unroll
    for (u32 i = 0; i < D / 16; ++i) {
        const u32 chunk = 2 * i + threadIdx.x % 2;
        const bool valid = slot != NO_SLOT && 8 * chunk < args.head_dim;
        copy_async(&stage.keys[row][chunk], args.keys + place + (valid ? 8 * chunk : 0), valid);
        copy_async(&stage.values[row][chunk], args.values + place + (valid ? 8 * chunk : 0), valid);
    }
    commit_copies();
}

// `attend_tile` of attention_tile.cuh with keys and values in shared memory. `whole`: every row sees every position.
__device__ __forceinline__ void attend_stage(const AttentionArgs& args, const RowsStage& stage, const QueryFragments<D>& queries,
                                             const float (&unscale)[2], const i32 (&position)[2], u32 tile, bool whole, u32 lane,
                                             RowSoftmax (&softmax)[2], RowOutputs<D>& out) {
    constexpr int KEYS = 4;
    const u32 g = lane / 4;
    const u32 t = lane % 4;
    float s[8][4];
#pragma unroll
    for (int first = 0; first < 8; first += KEYS) {
        CachedHalves<D / 4> keys[KEYS];
#pragma unroll
        for (int n = 0; n < KEYS; ++n)
#pragma unroll
            for (int i = 0; i < D / 32; ++i) {
                const Words4 words = stage.keys[8 * (first + n) + g][t * (D / 32) + i];
                keys[n].words[4 * i] = words.x;
                keys[n].words[4 * i + 1] = words.y;
                keys[n].words[4 * i + 2] = words.z;
                keys[n].words[4 * i + 3] = words.w;
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
            }
#pragma unroll
            for (int n = 0; n < KEYS; ++n) {
                mma_f16_k16(s[first + n], a_low, keys[n].words[2 * step], keys[n].words[2 * step + 1]);
            }
        }
    }
    const i32 window = args.window == 0 ? 0x7fffffff : (i32)args.window;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float largest = -INFINITY_F32;
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float& score = s[n][2 * r + c];
                score *= unscale[r];
                if (!whole) {
                    const i32 distance = position[r] - (i32)(tile * ATTENTION_TILE + 8 * n + 2 * t + c);
                    if (position[r] < 0 || distance < 0 || distance >= window) score = -INFINITY_F32;
                }
                largest = fmaxf(largest, score);
            }
        largest = quad_max(largest);
        const bool empty = largest == -INFINITY_F32;
        const float m = empty ? -INFINITY_F32 : ceilf(largest) - PROBABILITY_BITS;
        // What an empty row subtracts does not matter: 2^(-inf) is zero, as is that of every masked score.
        const float shift = empty ? 0.0f : m;
        float l = 0.0f;
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float& score = s[n][2 * r + c];
                score = exp2_approx(score - shift);
                l += score;
            }
        softmax[r] = {m, quad_sum(l)};
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) out.at[n][c] = 0.0f;
    // Row and chunk whose address this lane gives for the transposed loads of values.
    const u32 row = lane % 16;
    const u32 chunk = lane / 16;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        u32 a_high[4], a_low[4];
        split_halves(s[2 * step][0], s[2 * step][1], a_high[0], a_low[0]);
        split_halves(s[2 * step][2], s[2 * step][3], a_high[1], a_low[1]);
        split_halves(s[2 * step + 1][0], s[2 * step + 1][1], a_high[2], a_low[2]);
        split_halves(s[2 * step + 1][2], s[2 * step + 1][3], a_high[3], a_low[3]);
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            u32 v[4];
            load_transposed(v, &stage.values[16 * step + row][n + chunk]);
            mma_f16_k16(out.at[n], a_high, v[0], v[1]);
            mma_f16_k16(out.at[n + 1], a_high, v[2], v[3]);
            mma_f16_k16(out.at[n], a_low, v[0], v[1]);
            mma_f16_k16(out.at[n + 1], a_low, v[2], v[3]);
        }
    }
}

KERNEL(ATTENTION_ROWS, AttentionArgs, 32 * ATTENTION_WARPS, (D <= 64 ? 3 : 2)) {
    DYNAMIC_SHARED(u8, memory);
    RowsShared& shared = *(RowsShared*)memory;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    const RowShape shape = row_shape(args);
    const u32 kv_head = blockIdx.y / shape.head_groups;
    const u32 tokens = *args.tokens;
    const u32 per_cta = ATTENTION_WARPS * shape.tokens;
    // The last tokens see most: they go first.
    const u32 begin = (gridDim.x - 1 - blockIdx.x) * per_cta;
    if (begin >= tokens) return;
    const u32 end = begin + per_cta < tokens ? begin + per_cta : tokens;
    const u32 first = begin + warp * shape.tokens;
    const u32 own_end = first + shape.tokens < end ? first + shape.tokens : end;
    // A warp beyond the end has no live rows, and reads a token that exists.
    LaneRows rows = lane_rows(shape, first < end ? first : begin, first < end ? own_end : begin, kv_head,
                              blockIdx.y % shape.head_groups, lane);
    float unscale[2];
    load_queries<D>(args, rows, lane, shared.queries[warp], unscale);
    RowSoftmax state[2] = {{-INFINITY_F32, 0.0f}, {-INFINITY_F32, 0.0f}};
    RowOutputs<D> out;
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) out.at[n][c] = 0.0f;
    for (u32 run_begin = begin; run_begin < end;) {
        const Run run = next_run(args, run_begin, end);
        run_begin = run.end;
        // What this warp's rows of the run see.
        i32 position[2];
        u32 from = 0xffffffffu, to = 0, low = 0xffffffffu, high = 0;
        for (u32 token = first > run.begin ? first : run.begin; token < own_end && token < run.end; ++token) {
            const u32 own = args.positions[token];
            const u32 tile = first_tile(args, own);
            from = tile < from ? tile : from;
            to = own / ATTENTION_TILE > to ? own / ATTENTION_TILE : to;
            low = own < low ? own : low;
            high = own > high ? own : high;
        }
        bool all = true;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const bool takes_part = rows.live[r] && rows.token[r] >= run.begin && rows.token[r] < run.end;
            position[r] = takes_part ? (i32)args.positions[rows.token[r]] : -1;
            all = all && takes_part;
        }
        all = __all_sync(0xffffffffu, all);
        const u32 last_tile = run.last / ATTENTION_TILE;
        u32 slot = own_slot(args, run, run.first_tile);
        copy_tile(args, shared.stages[0], kv_head, slot);
        slot = own_slot(args, run, run.first_tile + 1);
#pragma unroll 1
        for (u32 tile = run.first_tile; tile <= last_tile; ++tile) {
            const u32 current = (tile - run.first_tile) % 2;
            if (tile < last_tile) {
                copy_tile(args, shared.stages[1 - current], kv_head, slot);
                slot = own_slot(args, run, tile + 2);
                wait_copies<1>();
            } else {
                wait_copies<0>();
            }
            __syncthreads();
            if (tile >= from && tile <= to) {
                const u32 start = tile * ATTENTION_TILE;
                const bool whole = all && start + ATTENTION_TILE - 1 <= low && (args.window == 0 || high - start < args.window);
                RowSoftmax softmax[2];
                RowOutputs<D> tile_out;
                attend_stage(args, shared.stages[current], shared.queries[warp], unscale, position, tile, whole, lane, softmax,
                             tile_out);
                const JoinFactors factors[2] = {join(state[0], softmax[0]), join(state[1], softmax[1])};
#pragma unroll
                for (int n = 0; n < D / 8; ++n)
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        out.at[n][c] = join_output(out.at[n][c], tile_out.at[n][c], factors[c / 2]);
                    }
            }
            __syncthreads();
        }
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
