// sample: one token per output row, by the rules of backends/core/src/sampling, the same token as the host's.
//
// logits: [rows, vocab] f32; y: [rows] u32, NO_TOKEN when a logit is NaN or +inf or all are -inf.
// Three launches, a row cut into tiles of 4096 logits:
//   sample_max    grid (tiles, rows): repetition penalty into a copy, arg-max of each tile.
//   sample_weigh  grid (tiles, rows): integer weights and their sum per tile; greedy rows have nothing to do.
//   sample_draw   grid (rows): arg-max for greedy rows; else top-k, top-p (radix selection over the row) and the draw.
// All sums are of integers, so their order does not matter. Moves 12 bytes per logit (4 for a greedy row); bound by
// latency. Top-k and top-p each read the row five times more, from L2.
#include "common/inputs.cuh"
#include "common/sampling.cuh"

#define TILE 4096u
#define MAX_TILES 256u
// Arg-max of a tile that holds a NaN or +inf.
#define UNUSABLE 0xffffffffffffffffull

struct SampleArgs {
    const float* logits;
    // [rows, vocab] after the penalty; `logits` itself when the program has none.
    float* penalised;
    // [rows, vocab]
    u32* weights;
    // [rows, tiles]: ranked arg-max.
    u64* tile_best;
    // [rows, tiles]: sum of weights.
    u64* tile_totals;
    const PreparedRow* sampling;
    // [rows, max_penalty_tokens]
    const u32* penalty_tokens;
    u32* y;
    const u32* rows;
    u32 vocab;
    u32 tiles;
    u32 max_penalty_tokens;
    u32 reserved;
};

// A thread's logits of a tile, all asked for before the first is used; beyond `end` the lowest number.
struct HeldLogits {
    static constexpr u32 COUNT = TILE / 256;
    float at[COUNT];

    __device__ __forceinline__ HeldLogits(const float* logits, u32 first, u32 end) {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) at[i] = id(first, i) < end ? logits[id(first, i)] : -INFINITY_F32;
    }

    static __device__ __forceinline__ u32 id(u32 first, u32 i) { return first + i * 256 + threadIdx.x; }
};

KERNEL(sample_max, SampleArgs, 256) {
    __shared__ u64 partials[32];
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 row = blockIdx.y;
    if (row >= *args.rows) return;
    const u64 base = (u64)row * args.vocab;
    const float* logits = args.logits + base;
    const u32 first = blockIdx.x * TILE;
    const u32 end = min(first + TILE, args.vocab);
    if (args.max_penalty_tokens > 0) {
        const PreparedRow& parameters = args.sampling[row];
        float* penalised = args.penalised + base;
        for (u32 id = first + threadIdx.x; id < end; id += 256) penalised[id] = logits[id];
        __syncthreads();
        for (u32 i = threadIdx.x; i < args.max_penalty_tokens; i += 256) {
            const u32 id = args.penalty_tokens[(u64)row * args.max_penalty_tokens + i];
            if (id < first || id >= end) continue;
            const float raw = logits[id];
            penalised[id] = __fmul_rn(raw, raw > 0.0f ? parameters.inverse_penalty : parameters.penalty);
        }
        __syncthreads();
        logits = penalised;
    }
    u64 best = 0;
    const HeldLogits held(logits, first, end);
#pragma unroll
    for (u32 i = 0; i < HeldLogits::COUNT; ++i) {
        // Ties go to ids that exist.
        const float logit = held.at[i];
        const u64 key = logit < INFINITY_F32 ? ranked(ordered_key(logit), held.id(first, i)) : UNUSABLE;
        best = key > best ? key : best;
    }
    best = cta_max<256>(best, partials);
    if (threadIdx.x == 0) args.tile_best[(u64)row * args.tiles + blockIdx.x] = best;
}

// The row's arg-max from those of its tiles; UNUSABLE when there is none. Every thread gets it.
template <int THREADS>
__device__ __forceinline__ u64 row_best(const SampleArgs& args, u32 row, u64* partials) {
    u64 best = 0;
    for (u32 tile = threadIdx.x; tile < args.tiles; tile += THREADS) {
        const u64 key = args.tile_best[(u64)row * args.tiles + tile];
        best = key > best ? key : best;
    }
    best = cta_max<THREADS>(best, partials);
    return best >> 32 == ordered_key(-INFINITY_F32) ? UNUSABLE : best;
}

KERNEL(sample_weigh, SampleArgs, 256) {
    __shared__ u64 partials[32];
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 row = blockIdx.y;
    if (row >= *args.rows) return;
    const PreparedRow& parameters = args.sampling[row];
    if (parameters.scale == 0.0f) return;
    const u64 best = row_best<256>(args, row, partials);
    if (best == UNUSABLE) return;
    const u64 base = (u64)row * args.vocab;
    const float* logits = args.penalised + base;
    const float largest = logits[~(u32)best];
    const u32 first = blockIdx.x * TILE;
    const u32 end = min(first + TILE, args.vocab);
    u64 total = 0;
    const HeldLogits held(logits, first, end);
#pragma unroll
    for (u32 i = 0; i < HeldLogits::COUNT; ++i) {
        const u32 id = HeldLogits::id(first, i);
        if (id >= end) break;
        u32 weight = exp_weight(__fmul_rn(__fsub_rn(largest, held.at[i]), parameters.scale));
        if (weight < parameters.min_weight) weight = 0;
        args.weights[base + id] = weight;
        total += weight;
    }
    total = warp_sum_u64(total);
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
        u64 sum = 0;
        for (u32 warp = 0; warp < 8; ++warp) sum += partials[warp];
        args.tile_totals[(u64)row * args.tiles + blockIdx.x] = sum;
    }
}

#define DRAW_THREADS 1024

// Shared memory of sample_draw.
struct DrawShared {
    u64 partials[32];
    u64 bins[256];
    u64 tiles[MAX_TILES];
    u64 found;
    u64 remaining;
};

// One row and the thresholds found so far: an id survives if its logit's key is above `key`, or equals it and the id is at
// most `key_id`; and likewise for its weight.
struct Survivors {
    const float* logits;
    const u32* weights;
    u32 vocab;
    u32 tiles;
    u32 key;
    u32 key_id;
    u32 weight;
    u32 weight_id;

    __device__ __forceinline__ u32 weight_of(u32 id) const {
        const u32 value = weights[id];
        if (value < weight || (value == weight && id > weight_id)) return 0;
        const u32 rank = key == 0 ? 0 : ordered_key(logits[id]);
        return rank < key || (rank == key && id > key_id) ? 0 : value;
    }
};

// What is selected by, counted or summed.
struct KeyCount {
    __device__ __forceinline__ static u32 value(const Survivors& row, u32 id) { return ordered_key(row.logits[id]); }
    __device__ __forceinline__ static u64 measure(u32) { return 1; }
};
struct WeightSum {
    __device__ __forceinline__ static u32 value(const Survivors& row, u32 id) { return row.weight_of(id); }
    __device__ __forceinline__ static u64 measure(u32 value) { return value; }
};

// The value at which the measures, summed from the largest value downwards, reach `needed` (>= 1); `remaining` gets what
// of `needed` falls on that value itself. Four rounds of eight bits.
template <class Select>
__device__ __forceinline__ u32 radix_select(const Survivors& row, u64 needed, DrawShared& shared, u64& remaining) {
    u32 prefix = 0;
    u32 mask = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < 256) shared.bins[threadIdx.x] = 0;
        __syncthreads();
        for (u32 id = threadIdx.x; id < row.vocab; id += DRAW_THREADS) {
            const u32 value = Select::value(row, id);
            const u64 measure = Select::measure(value);
            if ((value & mask) == prefix && measure > 0) atomicAdd(&shared.bins[value >> shift & 255], measure);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u64 left = needed;
            u32 bin = 255;
            while (bin > 0 && shared.bins[bin] < left) left -= shared.bins[bin--];
            shared.found = bin;
            shared.remaining = left;
        }
        __syncthreads();
        prefix |= (u32)shared.found << shift;
        mask |= 255u << shift;
        needed = shared.remaining;
        __syncthreads();
    }
    remaining = needed;
    return prefix;
}

// Counts an id when its selected value equals the threshold.
template <class Select>
struct Equal {
    u32 threshold;
    __device__ __forceinline__ u64 operator()(const Survivors& row, u32 id) const {
        return Select::value(row, id) == threshold ? 1 : 0;
    }
};
struct Weight {
    __device__ __forceinline__ u64 operator()(const Survivors& row, u32 id) const { return row.weight_of(id); }
};

// Sums `measure` over every tile into shared.tiles; returns the row's sum.
template <class Measure>
__device__ __forceinline__ u64 sum_tiles(const Survivors& row, Measure measure, DrawShared& shared) {
    for (u32 tile = threadIdx.x; tile < row.tiles; tile += DRAW_THREADS) shared.tiles[tile] = 0;
    __syncthreads();
    for (u32 tile = 0; tile < row.tiles; ++tile) {
        u64 sum = 0;
        const u32 end = min((tile + 1) * TILE, row.vocab);
        for (u32 id = tile * TILE + threadIdx.x; id < end; id += DRAW_THREADS) sum += measure(row, id);
        sum = warp_sum_u64(sum);
        if (threadIdx.x % 32 == 0 && sum > 0) atomicAdd(&shared.tiles[tile], sum);
    }
    __syncthreads();
    u64 total = 0;
    for (u32 tile = 0; tile < row.tiles; ++tile) total += shared.tiles[tile];
    __syncthreads();
    return total;
}

// The first id, ascending, at which the sum of `measure` exceeds `target`, given the tiles' sums in shared.tiles.
template <class Measure>
__device__ __forceinline__ u32 locate(const Survivors& row, Measure measure, u64 target, DrawShared& shared) {
    u32 tile = 0;
    u64 before = 0;
    while (tile + 1 < row.tiles && before + shared.tiles[tile] <= target) before += shared.tiles[tile++];
    // Each thread takes four neighbours; an inclusive scan over warps, then over the warps' sums.
    const u32 first = tile * TILE + threadIdx.x * 4;
    u64 values[4];
    u64 sum = 0;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        values[i] = first + i < row.vocab ? measure(row, first + i) : 0;
        sum += values[i];
    }
    u64 inclusive = sum;
#pragma unroll
    for (int distance = 1; distance < 32; distance <<= 1) {
        const u64 other = __shfl_up_sync(0xffffffffu, inclusive, distance);
        if (threadIdx.x % 32 >= distance) inclusive += other;
    }
    if (threadIdx.x % 32 == 31) shared.partials[threadIdx.x / 32] = inclusive;
    if (threadIdx.x == 0) shared.found = NO_TOKEN;
    __syncthreads();
    u64 running = before + inclusive - sum;
    for (u32 warp = 0; warp < threadIdx.x / 32; ++warp) running += shared.partials[warp];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        // Exactly one id takes the sum across the target.
        if (running <= target && running + values[i] > target) shared.found = first + i;
        running += values[i];
    }
    __syncthreads();
    const u32 found = (u32)shared.found;
    __syncthreads();
    return found;
}

// Keeps the shortest descending prefix whose sum reaches `ceil(total * top_p / 2^32)`.
__device__ __forceinline__ void keep_top_p(Survivors& row, u32 top_p, u64 total, DrawShared& shared) {
    const u64 low = (u64)top_p * total;
    const u64 high = __umul64hi((u64)top_p, total);
    const u64 needed = (high << 32 | low >> 32) + ((u32)low != 0);
    u64 remaining;
    const u32 threshold = radix_select<WeightSum>(row, needed, shared, remaining);
    if (threshold == 0) return;
    const Equal<WeightSum> equal{threshold};
    sum_tiles(row, equal, shared);
    const u32 last = locate(row, equal, (remaining + threshold - 1) / threshold - 1, shared);
    row.weight = threshold;
    row.weight_id = last;
}

KERNEL(sample_draw, SampleArgs, DRAW_THREADS, 1) {
    __shared__ DrawShared shared;
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 row_index = blockIdx.x;
    if (row_index >= *args.rows) return;
    const PreparedRow& parameters = args.sampling[row_index];
    const u64 best = row_best<DRAW_THREADS>(args, row_index, shared.partials);
    if (best == UNUSABLE || parameters.scale == 0.0f) {
        if (threadIdx.x == 0) args.y[row_index] = best == UNUSABLE ? NO_TOKEN : ~(u32)best;
        return;
    }
    const u64 base = (u64)row_index * args.vocab;
    Survivors row{args.penalised + base, args.weights + base, args.vocab, args.tiles, 0, NO_TOKEN, 0, NO_TOKEN};
    u64 total;
    if (parameters.top_k < args.vocab) {
        u64 remaining;
        row.key = radix_select<KeyCount>(row, parameters.top_k, shared, remaining);
        const Equal<KeyCount> equal{row.key};
        sum_tiles(row, equal, shared);
        row.key_id = locate(row, equal, remaining - 1, shared);
        total = sum_tiles(row, Weight{}, shared);
    } else {
        for (u32 tile = threadIdx.x; tile < args.tiles; tile += DRAW_THREADS) {
            shared.tiles[tile] = args.tile_totals[(u64)row_index * args.tiles + tile];
        }
        __syncthreads();
        total = 0;
        for (u32 tile = 0; tile < args.tiles; ++tile) total += shared.tiles[tile];
        __syncthreads();
    }
    if (parameters.top_p_high == 0) {
        keep_top_p(row, parameters.top_p_low, total, shared);
        total = sum_tiles(row, Weight{}, shared);
    }
    const u64 random = (u64)parameters.random_high << 32 | parameters.random_low;
    const u32 token = locate(row, Weight{}, __umul64hi(random, total), shared);
    if (threadIdx.x == 0) args.y[row_index] = token;
}
