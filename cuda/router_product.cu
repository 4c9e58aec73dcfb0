// [rms_norm,] linear over a router's plain matrix, and router, at once: y[t][e] = sum_i weight[e][i] x[t][i] + bias[e], then
// the choice.
//
// x: [tokens, width] f32, width a multiple of 4; weight: [experts, width] F32, row tiles of 8 (common/weight.cuh);
// logits: [tokens, experts] f32; ids: [tokens, top_k] u32, weights: [tokens, top_k] f32.
// Grid: (row tiles / 1 or 4, most tokens / 4 or 16), 256 threads. A CTA multiplies its row tiles by its tokens; of those that
// share tokens, the last to arrive chooses, a warp per token. router_product4: few tokens, bound by latency: most weights come
// before the previous kernel ends. router_normed4: the same of rms_norm(x), which goes to `normed` and to activation records
// where those are not null; width a multiple of 32, at most 4096. router_product16: reads the matrix once per 16 tokens, from
// L2; bound by FMA issue and shared memory. The bits are those of rms_norm, linear (common/plain.cuh) and router one after the
// other.
//
// As in linear_plain, lane 4r + c of a warp owns row r of each tile and slice 4 warp + c. The warp alone reads the parts of x
// that lie in its four slices, so that it copies them to shared memory ahead for itself and waits for no other warp.
#include "common/arrival.cuh"
#include "common/norm.cuh"
#include "common/plain.cuh"
#include "common/router.cuh"
#include "common/routing_choice.cuh"

#define WARP_SLICES 4
// Tokens of a CTA of router_normed4, and quads of a row that a thread of it takes.
#define NORMED_TOKENS 4
#define OWN_QUADS 4

// Copies the warp's parts of x to shared memory, STEPS quads of its four slices and all its tokens at a time:
// [token][step][slice].
template <int NC, int STEPS, int STAGES>
struct WarpInput {
    static constexpr u32 QUADS = NC * STEPS * WARP_SLICES;
    // Lanes that copy one token.
    static constexpr u32 LANES = STEPS * WARP_SLICES;
    static_assert(32 % LANES == 0, "a lane copies the same quad of every token it copies");

    const Floats4* ring;
    SharedAddress target;   // this lane's place in the first stage
    const Floats4* source;  // what it copies there
    u32 length;             // quads of the slice that are left from there on
    u32 tokens;             // and tokens
    u32 stride;

    __device__ __forceinline__ WarpInput(Floats4* shared, const float* x, u32 quads, u32 live) {
        const u32 warp = threadIdx.x / 32;
        const u32 lane = threadIdx.x % 32;
        const u32 step = lane % STEPS;
        const u32 token = lane / LANES;
        const u32 in_warp = lane / STEPS % WARP_SLICES;
        const u32 slice = warp * WARP_SLICES + in_warp;
        const u32 first = slice * quads / PLAIN_SLICES + step;
        const u32 end = (slice + 1) * quads / PLAIN_SLICES;
        Floats4* own = shared + warp * STAGES * QUADS;
        ring = own;
        target = shared_address(own + (token * STEPS + step) * WARP_SLICES + in_warp);
        source = (const Floats4*)x + (u64)token * quads + first;
        length = end > first ? end - first : 0;
        tokens = live > token ? live - token : 0;
        stride = quads;
    }

    __device__ __forceinline__ const Floats4* stage(u32 batch) const { return ring + batch % STAGES * QUADS; }

    __device__ __forceinline__ void ask(u32 batch) const {
        if (batch * STEPS < length) {
            const SharedAddress to = target + batch % STAGES * QUADS * 16;
            const Floats4* from = source + batch * STEPS;
#pragma unroll
            for (u32 n = 0; n < NC; n += 32 / LANES) {
                if (n < tokens) copy_async(to + n * LANES * 16, from);
                from += stride * (32 / LANES);
            }
        }
        commit_copies();
    }
};

// This lane's rows and slice of RT row tiles, HELD quads ahead of their use.
template <int RT, int HELD>
struct LaneWeights {
    const Words4* codes[RT];
    u32 begin, end;
    Words4 raw[HELD][RT];

    __device__ __forceinline__ LaneWeights(const Weight& weight, u32 tile) {
#pragma unroll
        for (int r = 0; r < RT; ++r) plain_slice(weight, tile + (tile + r < weight.row_tiles ? r : 0), codes[r], begin, end);
#pragma unroll
        for (u32 i = 0; i < HELD; ++i) load(i, i);
    }

    // Asks for quad `step` of the slice.
    __device__ __forceinline__ void load(u32 step, u32 place) {
#pragma unroll
        for (int r = 0; r < RT; ++r) {
            if (begin + step < end) raw[place][r] = load_stream(codes[r] + (u64)(begin + step) * 8);
        }
    }

    // Adds the products of a quad with those of NC tokens, which lie `stride` quads apart.
    template <int NC>
    __device__ __forceinline__ void multiply(u32 place, const Floats4* x, u32 stride, float (&acc)[RT][NC]) const {
        PlainChunk<FORMAT_F32> decoded[RT];
#pragma unroll
        for (int r = 0; r < RT; ++r) decoded[r] = decode_chunk<FORMAT_F32>(raw[place][r]);
#pragma unroll
        for (int n = 0; n < NC; ++n) {
            const Floats4 four = x[n * stride];
#pragma unroll
            for (int r = 0; r < RT; ++r)
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[r][n] = fmaf(decoded[r].at[i], four.at[i], acc[r][n]);
        }
    }
};

// Adds the slices of every row from `tile` on and token, ascending; the last CTA of these tokens chooses. `partial`: shared,
// which the CTA's warps may still be reading.
template <int RT, int NC>
__device__ __forceinline__ void join_and_choose(const RouterProductArgs& args, const float (&acc)[RT][NC], float* partial,
                                                u32 tile, u32 first, u32 live) {
    constexpr u32 ROWS = 8 * RT;
    // Padded for the banks: lanes of four slices store at once.
    constexpr u32 SLICE_FLOATS = NC * ROWS + 8;
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    float* logits = partial + PLAIN_SLICES * SLICE_FLOATS;
    __syncthreads();
#pragma unroll
    for (int n = 0; n < NC; ++n)
#pragma unroll
        for (int r = 0; r < RT; ++r) {
            partial[(warp * WARP_SLICES + lane % 4) * SLICE_FLOATS + n * ROWS + r * 8 + lane / 4] = acc[r][n];
        }
    __syncthreads();
    for (u32 index = threadIdx.x; index < live * ROWS; index += PLAIN_THREADS) {
        const u32 expert = tile * 8 + index % ROWS;
        if (expert >= args.experts) continue;
        float sum = 0.0f;
#pragma unroll 8
        for (u32 s = 0; s < PLAIN_SLICES; ++s) sum += partial[s * SLICE_FLOATS + index];
        if (args.bias) sum += args.bias[expert];
        args.logits[(u64)(first + index / ROWS) * args.experts + expert] = sum;
        logits[index / ROWS * args.experts + expert] = sum;
    }
    if (gridDim.x > 1) {
        if (!arrives_last(args.arrivals + blockIdx.y, gridDim.x)) return;
        const float* all = args.logits + (u64)first * args.experts;
        for (u32 index = threadIdx.x; index < live * args.experts; index += PLAIN_THREADS) {
            logits[index] = load_fresh(all + index);
        }
    }
    __syncthreads();
    for (u32 n = warp; n < live; n += PLAIN_THREADS / 32) {
        const u64 at = (u64)(first + n) * args.top_k;
        store_choice(logits + n * args.experts, args.experts, args.top_k, lane, args.ids + at, args.weights + at);
    }
}

// RT row tiles times NC tokens. STEPS quads of each slice make a batch; x is STAGES batches ahead, weights are HELD quads.
template <int RT, int NC, int STEPS, int STAGES, int HELD>
__device__ __forceinline__ void router_product(const RouterProductArgs& args) {
    static_assert(HELD % STEPS == 0, "weights are held for whole batches");
    DYNAMIC_SHARED(Floats4, shared);
    const u32 tile = blockIdx.x * RT;
    const u32 quads = args.weight.blocks;
    const u32 columns = *args.rows;
    LaneWeights<RT, HELD> weights(args.weight, tile);
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 first = blockIdx.y * NC;
    if (first >= columns) return;
    const u32 live = min(columns - first, (u32)NC);
    const WarpInput<NC, STEPS, STAGES> input(shared, args.x + (u64)first * args.weight.columns, quads, live);
#pragma unroll
    for (u32 s = 0; s < STAGES; ++s) input.ask(s);

    float acc[RT][NC] = {};
    const u32 longest = (quads + PLAIN_SLICES - 1) / PLAIN_SLICES;
    const u32 shortest = quads / PLAIN_SLICES;
#pragma unroll 1
    for (u32 past = 0; past < longest; past += HELD) {
#pragma unroll
        for (u32 i = 0; i < HELD; i += STEPS) {
            if (past + i >= longest) break;
            const u32 batch = (past + i) / STEPS;
            wait_copies<STAGES - 1>();
            __syncwarp();
            const Floats4* x = input.stage(batch) + threadIdx.x % WARP_SLICES;
            // All but the ends of slices is the same for all of them.
            const bool all = past + i + STEPS <= shortest;
#pragma unroll
            for (u32 j = 0; j < STEPS; ++j) {
                if (all || weights.begin + past + i + j < weights.end) {
                    weights.multiply(i + j, x + j * WARP_SLICES, STEPS * WARP_SLICES, acc);
                }
                weights.load(past + HELD + i + j, i + j);
            }
            __syncwarp();
            input.ask(batch + STAGES);
        }
    }
    join_and_choose(args, acc, (float*)shared, tile, first, live);
}

// A row tile times NORMED_TOKENS normalised rows, which lie whole in shared memory. Weights are HELD quads ahead.
template <int HELD>
__device__ __forceinline__ void router_normed(const RouterNormArgs& args) {
    constexpr u32 NC = NORMED_TOKENS;
    DYNAMIC_SHARED(Floats4, shared);
    __shared__ float partials[NC][NORM_THREADS / 32];
    const RouterProductArgs& product = args.product;
    const u32 tile = blockIdx.x;
    const u32 quads = product.weight.blocks;
    const u32 columns = *product.rows;
    LaneWeights<1, HELD> weights(product.weight, tile);
    Floats4 factor[OWN_QUADS];
#pragma unroll
    for (u32 i = 0; i < OWN_QUADS; ++i) {
        const u32 quad = i * PLAIN_THREADS + threadIdx.x;
        if (quad < quads) factor[i] = ((const Floats4*)args.norm)[quad];
    }
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 first = blockIdx.y * NC;
    if (first >= columns) return;
    const u32 live = min(columns - first, NC);
    const Floats4* x = (const Floats4*)product.x + (u64)first * quads;
    Floats4 own[NC][OWN_QUADS];
#pragma unroll
    for (u32 n = 0; n < NC; ++n)
#pragma unroll
        for (u32 i = 0; i < OWN_QUADS; ++i) {
            const u32 quad = i * PLAIN_THREADS + threadIdx.x;
            own[n][i] = {{0.0f, 0.0f, 0.0f, 0.0f}};
            if (n < live && quad < quads) own[n][i] = x[n * quads + quad];
        }
    float squares[NC];
    // In the order of `squares_of`.
#pragma unroll
    for (u32 n = 0; n < NC; ++n) {
        squares[n] = 0.0f;
#pragma unroll
        for (u32 i = 0; i < OWN_QUADS; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) squares[n] = fmaf(own[n][i].at[j], own[n][i].at[j], squares[n]);
    }
    float scales[NC];
    scales_of_squares(squares, product.weight.columns, args.eps, partials, scales);
#pragma unroll
    for (u32 n = 0; n < NC; ++n)
#pragma unroll
        for (u32 i = 0; i < OWN_QUADS; ++i) {
            const u32 quad = i * PLAIN_THREADS + threadIdx.x;
            if (quad >= quads) break;
#pragma unroll
            for (int j = 0; j < 4; ++j) own[n][i].at[j] = own[n][i].at[j] * scales[n] * factor[i].at[j];
            shared[n * quads + quad] = own[n][i];
        }
    __syncthreads();

    float acc[1][NC] = {};
    const u32 longest = (quads + PLAIN_SLICES - 1) / PLAIN_SLICES;
    const u32 shortest = quads / PLAIN_SLICES;
#pragma unroll 1
    for (u32 past = 0; past < longest; past += HELD) {
#pragma unroll
        for (u32 i = 0; i < HELD; ++i) {
            if (past + i >= longest) break;
            if (past + i < shortest || weights.begin + past + i < weights.end) {
                weights.multiply(i, shared + weights.begin + past + i, quads, acc);
            }
            weights.load(past + HELD + i, i);
        }
    }
    // The CTAs of these tokens share them out.
    for (u32 n = tile; n < live; n += gridDim.x) {
        put_out(args, shared + n * quads, first + n, quads, threadIdx.x / 32, PLAIN_THREADS / 32);
    }
    join_and_choose(product, acc, (float*)(shared + NC * quads), tile, first, live);
}

KERNEL(router_product4_f32, RouterProductArgs, PLAIN_THREADS, 1) { router_product<1, 4, 8, 3, 24>(args); }
KERNEL(router_normed4_f32, RouterNormArgs, PLAIN_THREADS, 1) { router_normed<24>(args); }
KERNEL(router_product16_f32, RouterProductArgs, PLAIN_THREADS, 1) { router_product<4, 16, 4, 3, 4>(args); }
