// Products for a step of one token: the weights are all there is to read, so everything else hides behind them.
//
// A CTA's eight warps multiply one row tile at a time, each warp one slice of the contraction, its weights streaming through
// shared memory (common/stream.cuh). CTAs stay and take tile after tile; the first weights are requested before the previous
// kernel has ended. Every CTA has the activation records in shared memory: copied where a kernel before has made them, else
// made for itself, normalising the row first where asked.
#pragma once
#include "common/norm.cuh"
#include "common/quantize.cuh"
#include "common/stream.cuh"

#define SINGLE_THREADS 256

// Behind the records: the last warp reads up to three more, for nothing, which must not be where another warp is copying.
#define RECORDS_GAP (3 * ACTIVATION_CODE_BYTES)

// Dynamic shared memory: the activation records (codes of all blocks, then sums), the gap, then the warps' rings.
struct SingleActivations {
    ActivationCodes* codes;
    ActivationSums* sums;
    u8* rings;

    __device__ __forceinline__ SingleActivations(u32 blocks) {
        DYNAMIC_SHARED(Words4, dynamic_shared);
        codes = dynamic_shared;
        sums = (ActivationSums*)(dynamic_shared + 4 * blocks);
        rings = (u8*)(dynamic_shared + 5 * blocks + RECORDS_GAP / 16);
    }
};

// What is multiplied: records, or where there are none, floats.
struct SingleInput {
    const u8* codes;  // records, or null
    const ActivationSums* sums;
    const float* x;     // [width] f32
    const float* norm;  // [width] or null; else x * scale * norm[i] is multiplied
};

// A batch of quads of a row; with the factors of the norm, loaded before the previous kernel ends.
struct HeldQuads {
    static constexpr u32 COUNT = 3;
    Floats4 at[COUNT];

    // Quads `first` + threadIdx.x, and so on, of `quads`; zeros beyond.
    __device__ __forceinline__ void load(const float* x, u32 first, u32 quads) {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const u32 index = first + i * SINGLE_THREADS + threadIdx.x;
            at[i] = {{0.0f, 0.0f, 0.0f, 0.0f}};
            if (x && index < quads) at[i] = ((const Floats4*)x)[index];
        }
    }

    // What `squares_of` adds up for a row x that begins with these quads.
    __device__ __forceinline__ float squares(const float* x, u32 quads) const {
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sum = fmaf(at[i].at[j], at[i].at[j], sum);
#pragma unroll 1
        for (u32 index = COUNT * SINGLE_THREADS + threadIdx.x; index < quads; index += SINGLE_THREADS) {
            const Floats4 four = ((const Floats4*)x)[index];
#pragma unroll
            for (int j = 0; j < 4; ++j) sum = fmaf(four.at[j], four.at[j], sum);
        }
        return sum;
    }
};

// The first records of a row, on their way.
struct HeldRecords {
    static constexpr u32 COUNT = 5;
    Words4 at[COUNT];

    // Part `index` of the row's `blocks` records: all codes, then all sums.
    static __device__ __forceinline__ Words4 part(const SingleInput& in, u32 blocks, u32 index) {
        const u32 codes = blocks * (ACTIVATION_CODE_BYTES / 16);
        return index < codes ? ((const Words4*)in.codes)[index] : ((const Words4*)in.sums)[index - codes];
    }

    __device__ __forceinline__ void load(const SingleInput& in, u32 blocks) {
        const u32 parts = blocks * (ACTIVATION_CODE_BYTES / 16 + 1);
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const u32 index = i * SINGLE_THREADS + threadIdx.x;
            at[i] = {0, 0, 0, 0};
            if (in.codes && index < parts) at[i] = part(in, blocks, index);
        }
    }
};

// Puts the records of a row in place. `held`: its first ones; `factors`: the first quads of the norm. Ends with a barrier.
__device__ __forceinline__ void fill_activations(const SingleActivations& out, const SingleInput& in, u32 blocks,
                                                 const HeldRecords& held, HeldQuads& factors, float eps, float* normed) {
    __shared__ float partials[NORM_THREADS / 32];
    const u32 width = blocks * 32;
    if (in.codes) {
        const u32 parts = blocks * (ACTIVATION_CODE_BYTES / 16 + 1);
        Words4* to = (Words4*)out.codes;
#pragma unroll
        for (u32 i = 0; i < HeldRecords::COUNT; ++i) {
            const u32 index = i * SINGLE_THREADS + threadIdx.x;
            if (index < parts) to[index] = held.at[i];
        }
        for (u32 i = HeldRecords::COUNT * SINGLE_THREADS + threadIdx.x; i < parts; i += SINGLE_THREADS) {
            to[i] = HeldRecords::part(in, blocks, i);
        }
        __syncthreads();
        return;
    }
    const u32 quads = width / 4;
    HeldQuads own;
    own.load(in.x, 0, quads);
    float scale = 1.0f;
    if (in.norm) scale = scale_of_squares(own.squares(in.x, quads), width, eps, partials);
#pragma unroll 1
    for (u32 first = 0; first < quads; first += HeldQuads::COUNT * SINGLE_THREADS) {
        if (first > 0) {
            own.load(in.x, first, quads);
            factors.load(in.norm, first, quads);
        }
#pragma unroll
        for (u32 i = 0; i < HeldQuads::COUNT; ++i) {
            const u32 index = first + i * SINGLE_THREADS + threadIdx.x;
            const bool live = index < quads;
            // Whole warps without an element leave.
            if (index - threadIdx.x % 32 >= quads) break;
            Floats4& four = own.at[i];
            if (in.norm) {
#pragma unroll
                for (int j = 0; j < 4; ++j) four.at[j] = four.at[j] * scale * factors.at[i].at[j];
                if (normed && live) ((Floats4*)normed)[index] = four;
            }
            quantize_block(four, threadIdx.x % 8, live, {(u8*)out.codes, out.sums, index / 8});
        }
    }
    __syncthreads();
}

// What is added to each row of a CTA's first tile: asked for long before, since it lies far away and its reader would hold up
// the CTA. Kept in shared memory until then; readers pass a barrier between `keep` and `of`.
struct FirstRows {
    float* kept;  // shared, 32 floats
    float value;

    __device__ __forceinline__ FirstRows(float* shared) : kept(shared), value(0.0f) {}

    // Rows `first` to `first + 31`, as far as they are before `end`, of `rows` or nothing.
    __device__ __forceinline__ void load(const float* rows, u32 first, u32 end) {
        const u32 row = first + threadIdx.x;
        if (rows && threadIdx.x < 32 && row < end) value = rows[row];
    }

    __device__ __forceinline__ void keep() const {
        if (threadIdx.x < 32) kept[threadIdx.x] = value;
    }

    // Of `row`, which is `in_tile` of the `i`-th tile.
    __device__ __forceinline__ float of(u32 i, u32 in_tile, const float* rows, u32 row) const {
        return i == 0 ? kept[in_tile] : rows[row];
    }
};

// Which row tile of which weight is multiplied.
struct SinglePass {
    const Weight* weight;
    u64 row_tile;
};

// Multiplies `count` tiles, one after the other. `pass_of(i)` is the i-th. `prepare()` is called when the first weights are
// on their way and must leave the records in place, ending with a barrier; it returns false when there is nothing to do.
// `finish(i, row in tile, sum)` is called by the 32 lanes of one warp, the same for each `per_warp` tiles in a row.
template <int FORMAT, u32 RING_BYTES_OF_HOST, class PassOf, class Prepare, class Finish>
__device__ __forceinline__ void single_product(const SingleActivations& x, u32 blocks, u32 count, u32 per_warp,
                                               const PassOf& pass_of, const Prepare& prepare, const Finish& finish) {
    using C = Codec<FORMAT>;
    using K = Chunk<FORMAT>;
    static_assert(K::RING * SLICES == RING_BYTES_OF_HOST, "host and device disagree on the rings' size");
    __shared__ float partial[2][SLICES][32];
    const u32 lane = threadIdx.x % 32;
    const u32 slice = threadIdx.x / 32;
    const u32 units = blocks / C::BLOCKS;
    const u32 begin = slice_begin(slice, units);
    const u32 share = (slice_begin(slice + 1, units) - begin) * C::BLOCKS;
    const u32 chunks = (share + K::BLOCKS - 1) / K::BLOCKS;
    const auto place = [&](u32 i) {
        const SinglePass pass = pass_of(i);
        return CopyPlanes<FORMAT>(*pass.weight, pass.row_tile, begin, lane);
    };
    u8* const ring = x.rings + slice * K::RING;
    const SharedAddress target = shared_address(ring + lane * 16);
    // The next chunk to copy.
    CopyPlanes<FORMAT> at = place(0);
    u32 pass = 0;
    u32 chunk = 0;
    u32 to = 0;
    const auto copy_next = [&] {
        if (pass < count && chunks > 0) {
            const u32 left = share - chunk * K::BLOCKS;
            copy_chunk<FORMAT>(target + to * K::BYTES, at, left < K::BLOCKS ? left : K::BLOCKS, chunk % K::PER_UNIT == 0, lane);
            to = to + 1 == K::DEPTH ? 0 : to + 1;
            at.advance((chunk + 1) % K::PER_UNIT == 0);
            if (++chunk == chunks) {
                chunk = 0;
                if (++pass < count) at = place(pass);
            }
        }
        commit_copies();
    };
#pragma unroll 1
    for (u32 i = 0; i < K::DEPTH; ++i) copy_next();
    if (!prepare()) return;
    StreamRow<FORMAT> row;
    row.codes = (const u8*)(x.codes + 4 * begin * C::BLOCKS + lane % 4) + lane / 4 % 2 * 8;
    row.sums = x.sums + begin * C::BLOCKS;
    u32 from = 0;
#pragma unroll 1
    for (u32 i = 0; i < count; ++i) {
        row.acc = 0.0f;
#pragma unroll 1
        for (u32 c = 0; c < chunks; ++c) {
            wait_copies<K::DEPTH - 1>();
            // Every lane's copies have come.
            __syncwarp();
            const u32 left = share - c * K::BLOCKS;
            row.add(ring + from * K::BYTES, c * K::BLOCKS, left < K::BLOCKS ? left : K::BLOCKS, lane);
            from = from + 1 == K::DEPTH ? 0 : from + 1;
            // Every lane has read what the next copy overwrites.
            __syncwarp();
            copy_next();
        }
        partial[i % 2][slice][lane / 4 + 8 * (lane % 4)] = row.acc;
        // The other half of `partial` is free: its readers passed the barrier before this one.
        __syncthreads();
        if (slice == i / per_warp % SLICES) {
            float total = 0.0f;
#pragma unroll
            for (int s = 0; s < SLICES; ++s) total += partial[i % 2][s][lane];
            finish(i, lane, total * C::POST);
        }
    }
    wait_copies<0>();
}
