// linear over a router's plain matrix, and router, at once: y[t][e] = sum_i weight[e][i] x[t][i] + bias[e], then the choice.
//
// x: [tokens, width] f32, width a multiple of 4; weight: [experts, width] F32, row tiles of 8 (common/weight.cuh);
// logits: [tokens, experts] f32; ids: [tokens, top_k] u32, weights: [tokens, top_k] f32.
// Grid: (row tiles / 1 or 4, most tokens / 4 or 16), 256 threads. A CTA multiplies its row tiles by its tokens; of those that
// share tokens, the last to arrive chooses, a warp per token. router_product4: few tokens, bound by latency: most weights come
// before the previous kernel ends. router_product16: reads the matrix once per 16 tokens, from L2; bound by FMA issue and
// shared memory. The bits are those of linear (common/plain.cuh) and router one after the other.
//
// As in linear_plain, lane 4r + c of a warp owns row r of each tile and slice 4 warp + c. The warp alone reads the parts of x
// that lie in its four slices, so that it copies them to shared memory ahead for itself and waits for no other warp.
#include "common/arrival.cuh"
#include "common/plain.cuh"
#include "common/routing_choice.cuh"

#define MAX_EXPERTS 256
#define WARP_SLICES 4

struct RouterProductArgs {
    const float* x;
    Weight weight;
    const float* bias;  // [experts] or null
    float* logits;
    u32* ids;
    float* weights;
    const u32* rows;
    u32* arrivals;  // one per group of tokens: zero, and zero again in the end
    u32 experts;
    u32 top_k;
};

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

// RT row tiles times NC tokens. STEPS quads of each slice make a batch; x is STAGES batches ahead, weights are HELD quads.
template <int RT, int NC, int STEPS, int STAGES, int HELD>
__device__ __forceinline__ void router_product(const RouterProductArgs& args) {
    static_assert(HELD % STEPS == 0, "weights are held for whole batches");
    constexpr u32 ROWS = 8 * RT;
    // Padded for the banks: lanes of four slices store at once.
    constexpr u32 SLICE_FLOATS = NC * ROWS + 8;
    DYNAMIC_SHARED(Floats4, shared);
    const u32 tile = blockIdx.x * RT;
    const u32 quads = args.weight.blocks;
    const Words4* codes[RT];
    u32 begin, end;
#pragma unroll
    for (int r = 0; r < RT; ++r) plain_slice(args.weight, tile + (tile + r < args.weight.row_tiles ? r : 0), codes[r], begin, end);
    const u32 columns = *args.rows;
    Words4 raw[HELD][RT];
    const auto load = [&](u32 step, Words4(&into)[RT]) {
#pragma unroll
        for (int r = 0; r < RT; ++r) {
            if (begin + step < end) into[r] = load_stream(codes[r] + (u64)(begin + step) * 8);
        }
    };
#pragma unroll
    for (u32 i = 0; i < HELD; ++i) load(i, raw[i]);
    wait_for_previous_kernel();
    allow_next_kernel();
    const u32 first = blockIdx.y * NC;
    if (first >= columns) return;
    const u32 live = min(columns - first, (u32)NC);
    const WarpInput<NC, STEPS, STAGES> input(shared, args.x + (u64)first * args.weight.columns, quads, live);
#pragma unroll
    for (u32 s = 0; s < STAGES; ++s) input.ask(s);

    float acc[RT][NC] = {};
    const auto multiply = [&](const Words4(&w)[RT], const Floats4* x) {
        PlainChunk<FORMAT_F32> decoded[RT];
#pragma unroll
        for (int r = 0; r < RT; ++r) decoded[r] = decode_chunk<FORMAT_F32>(w[r]);
#pragma unroll
        for (int n = 0; n < NC; ++n) {
            const Floats4 four = x[n * STEPS * WARP_SLICES];
#pragma unroll
            for (int r = 0; r < RT; ++r)
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[r][n] = fmaf(decoded[r].at[i], four.at[i], acc[r][n]);
        }
    };
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
                if (all || begin + past + i + j < end) multiply(raw[i + j], x + j * WARP_SLICES);
                load(past + HELD + i + j, raw[i + j]);
            }
            __syncwarp();
            input.ask(batch + STAGES);
        }
    }

    // The slices of every row and token, ascending.
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    float* partial = (float*)shared;
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
        for (u32 index = threadIdx.x; index < live * args.experts; index += PLAIN_THREADS) logits[index] = load_fresh(all + index);
    }
    __syncthreads();
    for (u32 n = warp; n < live; n += PLAIN_THREADS / 32) {
        const u64 at = (u64)(first + n) * args.top_k;
        store_choice(logits + n * args.experts, args.experts, args.top_k, lane, args.ids + at, args.weights + at);
    }
}

KERNEL(router_product4_f32, RouterProductArgs, PLAIN_THREADS) { router_product<1, 4, 8, 3, 24>(args); }
KERNEL(router_product16_f32, RouterProductArgs, PLAIN_THREADS) { router_product<4, 16, 4, 3, 4>(args); }
