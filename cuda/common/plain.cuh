// Products with plain-float weights (F32, F16, BF16): fused multiply-adds in f32, for any number of columns.
//
// A warp takes a row tile of 8 rows; lane 4r + c owns row r and slice 4 * warp + c of the 32 slices of the contraction.
// Inside a slice elements go in ascending order, slices are added in ascending order: nothing depends on the columns.
#pragma once
#include "common/async.cuh"
#include "common/weight.cuh"

#define PLAIN_THREADS 256
#define PLAIN_SLICES 32

template <int FORMAT>
struct PlainChunk {
    static constexpr int ELEMENTS = FORMAT == FORMAT_F32 ? 4 : 8;
    float at[ELEMENTS];
};

template <int FORMAT>
__device__ __forceinline__ PlainChunk<FORMAT> decode_chunk(const Words4& raw) {
    const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
    PlainChunk<FORMAT> chunk;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (FORMAT == FORMAT_F32) {
            chunk.at[i] = __uint_as_float(words[i]);
        } else if constexpr (FORMAT == FORMAT_F16) {
            chunk.at[2 * i] = half_to_float((u16)words[i]);
            chunk.at[2 * i + 1] = half_to_float((u16)(words[i] >> 16));
        } else {
            chunk.at[2 * i] = __uint_as_float(words[i] << 16);
            chunk.at[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
    return chunk;
}

template <int NC>
struct PlainShared {
    float partial[PLAIN_SLICES][NC][8];
};

// Four floats of an activation row from `first` on; zeros past its end. WHOLE: the row is aligned and does not end there.
template <bool WHOLE>
__device__ __forceinline__ void load_four(const float* row, u32 first, u32 columns, float (&x)[4]) {
    if (WHOLE || (columns % 4 == 0 && first < columns)) {
        const Floats4 four = *(const Floats4*)(row + first);
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = four.at[i];
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = first + i < columns ? row[first + i] : 0.0f;
    }
}

// Adds one chunk of each row tile times the same elements of `x`, ascending, to the sums of column `n`.
template <int FORMAT, bool WHOLE, int RT, int NC>
__device__ __forceinline__ void add_decoded(const PlainChunk<FORMAT> (&w)[RT], const float* x, u32 chunk, u32 columns, int n,
                                            float (&acc)[RT][NC]) {
    constexpr int E = PlainChunk<FORMAT>::ELEMENTS;
#pragma unroll
    for (int q = 0; q < E / 4; ++q) {
        float four[4];
        load_four<WHOLE>(x, chunk * E + 4 * q, columns, four);
#pragma unroll
        for (int r = 0; r < RT; ++r)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[r][n] = fmaf(w[r].at[4 * q + i], four[i], acc[r][n]);
    }
}

template <int FORMAT>
__device__ __forceinline__ void add_chunk(const Words4& raw, const float* x, u32 chunk, u32 columns, float& acc) {
    const PlainChunk<FORMAT> w[1] = {decode_chunk<FORMAT>(raw)};
    float sum[1][1] = {{acc}};
    add_decoded<FORMAT, false, 1, 1>(w, x, chunk, columns, 0, sum);
    acc = sum[0][0];
}

// This lane's row and slice of a row tile (counted through all experts): chunk c of it is `codes[8 c]`, c in [begin, end).
__device__ __forceinline__ void plain_slice(const Weight& weight, u64 row_tile, const Words4*& codes, u32& begin, u32& end) {
    const u32 lane = threadIdx.x % 32;
    const u32 slice = threadIdx.x / 32 * 4 + lane % 4;
    codes = (const Words4*)weight.base + row_tile * weight.blocks * 8 + lane / 4;
    begin = slice * weight.blocks / PLAIN_SLICES;
    end = (slice + 1) * weight.blocks / PLAIN_SLICES;
}

// Adds the slices of every row and column, ascending; `store(row in tile, column, sum)`. Ends with a barrier.
template <int NC, class Store>
__device__ __forceinline__ void join_slices(PlainShared<NC>& shared, const float (&acc)[NC], const Store& store) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < NC; ++n) shared.partial[threadIdx.x / 32 * 4 + lane % 4][n][lane / 4] = acc[n];
    __syncthreads();
    if (threadIdx.x < 8 * NC) {
        const u32 column = threadIdx.x / 8;
        float total = 0.0f;
#pragma unroll 8
        for (int s = 0; s < PLAIN_SLICES; ++s) total += shared.partial[s][column][threadIdx.x % 8];
        store(threadIdx.x % 8, column, total);
    }
    __syncthreads();
}

// The sums of this lane's slice of each row tile and column. No branch parts the loads of a chunk, so that all are on their
// way at once.
template <int FORMAT, bool WHOLE, int RT, int NC>
__device__ __forceinline__ void add_slices(const Words4* const (&codes)[RT], u32 begin, u32 end, const float* const (&rows)[NC],
                                           u32 columns, float (&acc)[RT][NC]) {
#pragma unroll(RT == 1 ? 4 : 1)
    for (u32 chunk = begin; chunk < end; ++chunk) {
        PlainChunk<FORMAT> w[RT];
#pragma unroll
        for (int r = 0; r < RT; ++r) w[r] = decode_chunk<FORMAT>(load_stream(codes[r] + (u64)chunk * 8));
#pragma unroll
        for (int n = 0; n < NC; ++n) add_decoded<FORMAT, WHOLE, RT, NC>(w, rows[n], chunk, columns, n, acc);
    }
}

// `RT` row tiles from `row_tile` on, of which there are `tiles`, times NC columns. `row_of(column)`: a row of x, any for
// columns nobody wants.
// `store(row from the first tile's on, column, sum)` is called for every row of a tile there is and every column. All threads
// call it; ends with a barrier.
template <int FORMAT, int NC, int RT, class RowOf, class Store>
__device__ __forceinline__ void plain_products(const Weight& weight, u64 row_tile, u32 tiles, const float* x,
                                               PlainShared<NC>& shared, const RowOf& row_of, const Store& store) {
    const float* rows[NC];
    float acc[RT][NC];
#pragma unroll
    for (int n = 0; n < NC; ++n) {
        rows[n] = x + (u64)row_of(n) * weight.columns;
#pragma unroll
        for (int r = 0; r < RT; ++r) acc[r][n] = 0.0f;
    }
    const Words4* codes[RT];
    u32 begin, end;
#pragma unroll
    for (int r = 0; r < RT; ++r) plain_slice(weight, row_tile + (r < tiles ? r : 0), codes[r], begin, end);
    if (weight.columns % PlainChunk<FORMAT>::ELEMENTS == 0) {
        add_slices<FORMAT, true, RT, NC>(codes, begin, end, rows, weight.columns, acc);
    } else {
        add_slices<FORMAT, false, RT, NC>(codes, begin, end, rows, weight.columns, acc);
    }
#pragma unroll
    for (int r = 0; r < RT; ++r) {
        join_slices<NC>(shared, acc[r], [&](u32 row, u32 column, float sum) {
            if (r < tiles) store(8 * r + row, column, sum);
        });
    }
}

// Row tile `row_tile` times NC columns.
template <int FORMAT, int NC, class RowOf, class Store>
__device__ __forceinline__ void plain_product(const Weight& weight, u64 row_tile, const float* x, PlainShared<NC>& shared,
                                              const RowOf& row_of, const Store& store) {
    plain_products<FORMAT, NC, 1>(weight, row_tile, 1, x, shared, row_of, store);
}
