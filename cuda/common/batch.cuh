// Products for steps of 2 to 64 columns: common/stream.cuh for as many columns as shared memory has room for.
//
// A team of eight warps multiplies one row tile at a time, each warp one slice of the contraction, its weights streaming
// through a ring of its own. CTAs stay and take tile after tile of a list of tasks; the activations of their columns lie in
// shared memory and are replaced only where the list goes on with other columns. A CTA has one team and 8 or 16 columns, or
// two teams on neighbouring tiles and 16 columns.
//
// Columns go by fours: the tensor cores' operand B holds the high and the low bytes of a column side by side, so that one
// instruction makes both sums of four columns, and a step of few columns pays for four. Lane 4g + t gets the sums of column t
// and rows g, g + 8, g + 16, g + 24. The bits are those of tile.cuh.
#pragma once
#include "common/single.cuh"

// Columns of one operand B.
#define QUAD_COLUMNS 4

// What is kept of a block's sums: the scale; the bias or the sum of all elements behind it where the format asks for it, or
// the sums of both halves.
template <int FORMAT>
struct KeptSums {
    using C = Codec<FORMAT>;
    static constexpr u32 WORDS = C::MINIMUM && C::HALVES ? 4 : C::MINIMUM || C::BIASED ? 2 : 1;

    static __device__ __forceinline__ void store(u32* to, const ActivationSums& sums) {
        if constexpr (WORDS == 4) {
            *(ActivationSums*)to = sums;
        } else if constexpr (WORDS == 2) {
            const float whole = sums.low_half + sums.high_half;
            *(Words2*)to = {__float_as_uint(sums.scale), C::BIASED ? (u32)sums.bias : __float_as_uint(whole)};
        } else {
            *to = __float_as_uint(sums.scale);
        }
    }

    // `low_half` is the sum of all elements where halves do not differ.
    static __device__ __forceinline__ ActivationSums load(const u32* from) {
        if constexpr (WORDS == 4) {
            return *(const ActivationSums*)from;
        } else if constexpr (WORDS == 2) {
            const Words2 words = *(const Words2*)from;
            return {__uint_as_float(words.x), __uint_as_float(words.y), 0.0f, (i32)words.y};
        } else {
            return {__uint_as_float(*from), 0.0f, 0.0f, 0};
        }
    }
};

// Dynamic shared memory, `batch_bytes` in stream.rs: codes [block][column][64 bytes], sums [block][column], the warps' rings,
// partial sums, and what the kernel adds.
template <int FORMAT, int TEAMS_OF, int COLUMNS_OF>
struct BatchMemory {
    using K = Chunk<FORMAT>;
    static constexpr u32 TEAMS = TEAMS_OF;
    static constexpr u32 COLUMNS = COLUMNS_OF;
    static constexpr u32 THREADS = 32 * SLICES * TEAMS;
    // Columns whose sums a warp adds up.
    static constexpr u32 PER_WARP = COLUMNS / 8;
    // Chunks of a ring, at least two: as many as these bytes hold, `ring_bytes` in stream.rs.
    static constexpr u32 ROOM = (COLUMNS == 8 ? 6600 : TEAMS == 1 ? 8800 : 4400) / K::BYTES;
    static constexpr u32 DEPTH = ROOM < 2 ? 2 : ROOM;
    static constexpr u32 RING = DEPTH * K::BYTES;
    // Distances between blocks.
    static constexpr u32 CODES = COLUMNS * ACTIVATION_CODE_BYTES;
    static constexpr u32 SUMS = COLUMNS * KeptSums<FORMAT>::WORDS;

    u8* codes;
    u32* sums;
    u8* rings;
    float* partial;  // [team][slice][column][32 rows], rows in the order of `partial_place`
    u8* rest;

    __device__ __forceinline__ BatchMemory(u32 blocks) {
        DYNAMIC_SHARED(Words4, dynamic_shared);
        codes = (u8*)dynamic_shared;
        sums = (u32*)(codes + blocks * CODES);
        rings = (u8*)(sums + blocks * SUMS);
        partial = (float*)(rings + SLICES * TEAMS * RING);
        rest = (u8*)(partial + SLICES * TEAMS * COLUMNS * 32);
    }

    // Puts the records of `count` activation rows in place, `row_of(column)`; all threads. The caller waits for the copies.
    template <class RowOf>
    __device__ __forceinline__ void copy_columns(const u8* from_codes, const ActivationSums* from_sums, u32 count, u32 blocks,
                                                 const RowOf& row_of) const {
#pragma unroll 1
        for (u32 column = threadIdx.x / 32; column < count; column += THREADS / 32) {
            copy_column(from_codes, from_sums, row_of(column), column, blocks, threadIdx.x % 32);
        }
    }

    // The same for one; one warp.
    __device__ __forceinline__ void copy_column(const u8* from_codes, const ActivationSums* from_sums, u64 row, u32 column,
                                                u32 blocks, u32 lane) const {
        const u8* source = from_codes + row * blocks * ACTIVATION_CODE_BYTES + lane * 16;
        u8* target = codes + column * ACTIVATION_CODE_BYTES + lane / 4 * CODES + lane % 4 * 16;
#pragma unroll 4
        for (u32 block = lane / 4; block < blocks; block += 8) {
            copy_async(target, source, true);
            source += 8 * ACTIVATION_CODE_BYTES;
            target += 8 * CODES;
        }
        const ActivationSums* records = from_sums + row * blocks;
        // Four at once on their way.
#pragma unroll 1
        for (u32 first = lane; first < blocks; first += 128) {
            ActivationSums held[4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                if (first + 32 * i < blocks) held[i] = records[first + 32 * i];
            }
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 block = first + 32 * i;
                if (block < blocks) KeptSums<FORMAT>::store(sums + block * SUMS + column * KeptSums<FORMAT>::WORDS, held[i]);
            }
        }
    }
};

// The scales of a lane's four rows in block `b` of a chunk of a format without super-blocks.
template <int FORMAT>
__device__ __forceinline__ UnitScales chunk_rows(const u8* slot, u32 b, u32 lane) {
    using S = Strides<FORMAT>;
    const u8* scales = slot + Chunk<FORMAT>::SCALES + b * S::SCALES + lane / 4 * (S::SCALES / 8);
    ScaleRecord record;
    record.row = {0, 0, 0, 0};
    record.super = 0;
    if constexpr (S::SCALES == 128) {
        record.row = *(const Words4*)scales;
    } else if constexpr (S::SCALES == 64) {
        const Words2 words = *(const Words2*)scales;
        record.row.x = words.x;
        record.row.y = words.y;
    } else {
        record.row.x = *(const u32*)scales;
    }
    return unpack<FORMAT>(record);
}

// Puts the sub-scales of a super-block's last four blocks in the place of those of the first.
template <int FORMAT>
__device__ __forceinline__ void to_second_half(UnitScales& unit) {
    constexpr bool PAIRS = FORMAT == FORMAT_Q4_K || FORMAT == FORMAT_Q5_K;
    unit.words[0] = unit.words[PAIRS ? 1 : 2];
    unit.words[PAIRS ? 2 : 1] = unit.words[3];
}

// Adds a block of all quads to `acc`. `codes`, `sums`: of the block, this lane's part.
template <int FORMAT, int QUADS>
__device__ __forceinline__ void add_quads(const u32 (&upper)[4], const u32 (&lower)[4], const BlockScales<FORMAT>& scales,
                                          const u8* codes, const u32* sums, float (&acc)[QUADS][4]) {
    using C = Codec<FORMAT>;
#pragma unroll
    for (int q = 0; q < QUADS; ++q) {
        const Words2 x = *(const Words2*)(codes + q * QUAD_COLUMNS * ACTIVATION_CODE_BYTES);
        const ActivationSums own = KeptSums<FORMAT>::load(sums + q * QUAD_COLUMNS * KeptSums<FORMAT>::WORDS);
#pragma unroll
        for (int part = 0; part < BlockScales<FORMAT>::PARTS; ++part) {
            i32 c[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
            if constexpr (C::HALVES) {
                mma_s8_k16(c[0], upper[2 * part], upper[2 * part + 1], part == 0 ? x.x : x.y);
                mma_s8_k16(c[1], lower[2 * part], lower[2 * part + 1], part == 0 ? x.x : x.y);
            } else {
                mma_s8_k32(c[0], upper[0], upper[1], upper[2], upper[3], x.x, x.y);
                mma_s8_k32(c[1], lower[0], lower[1], lower[2], lower[3], x.x, x.y);
            }
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                const i32 low = c[w / 2][w % 2 * 2 + 1] + (C::BIASED ? own.bias : 0);
                const float sum = block_sum(c[w / 2][w % 2 * 2], low);
                acc[q][w] = add_scaled<FORMAT>(scales.code[part][w], own.scale, sum, acc[q][w]);
            }
            if constexpr (C::MINIMUM) {
                const float sum = part == 0 ? own.low_half : own.high_half;
#pragma unroll
                for (int w = 0; w < 4; ++w) acc[q][w] = fmaf(scales.least[part][w], sum, acc[q][w]);
            }
        }
    }
}

// A warp's place in its ring and in the activations of its slice.
template <int FORMAT, class M>
struct BatchSlice {
    using K = Chunk<FORMAT>;
    const u8* ring;
    // Of the slice's first block and the first quad, this lane's part. A quad's 256 bytes of codes are read by a warp at
    // once, 8 bytes a lane: no bank twice. Sums are the same for the lanes of a column.
    const u8* codes;
    const u32* sums;
    ByteTables tables;
    u32 share;   // blocks of the slice
    u32 chunks;  // and chunks
    u32 from;    // the chunk of the ring that is next

    // Adds `COUNT` blocks from block `first` of the chunk in `slot` on. `codes_at`, `sums_at`: activations of the chunk;
    // `unit`: the super-block's sub-scales.
    template <int QUADS, u32 COUNT>
    __device__ __forceinline__ void add_blocks(const u8* slot, u32 first, const u8* codes_at, const u32* sums_at,
                                               const UnitScales& unit, u32 lane, float (&acc)[QUADS][4]) const {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const u32 b = first + i;
            const TileCodes raw = chunk_codes<FORMAT>(slot, b, lane);
            u32 upper[4], lower[4];
            fragments_by<FORMAT, 0>(tables, raw, upper);
            fragments_by<FORMAT, 1>(tables, raw, lower);
            BlockScales<FORMAT> scales;
            if constexpr (K::C::SUPER) {
                scales = block_scales<FORMAT>(unit, b);
            } else {
                scales = block_scales<FORMAT>(chunk_rows<FORMAT>(slot, b, lane), 0);
            }
            add_quads<FORMAT, QUADS>(upper, lower, scales, codes_at + b * M::CODES, sums_at + b * M::SUMS, acc);
        }
    }

    // Multiplies the slice of one row tile with `QUADS` quads. `copy_next()` fills the place of the chunk used last.
    template <int QUADS, class CopyNext>
    __device__ __forceinline__ void multiply(u32 lane, const CopyNext& copy_next, float (&acc)[QUADS][4]) {
#pragma unroll
        for (int q = 0; q < QUADS; ++q)
#pragma unroll
            for (int w = 0; w < 4; ++w) acc[q][w] = 0.0f;
        UnitScales unit;
        const u8* block_codes = codes;
        const u32* block_sums = sums;
#pragma unroll 1
        for (u32 c = 0; c < chunks; ++c) {
            wait_copies<M::DEPTH - 1>();
            // Every lane's copies have come.
            __syncwarp();
            const u8* slot = ring + from * K::BYTES;
            const u32 live = share - c * K::BLOCKS;
            if constexpr (K::C::SUPER) {
                if (c % K::PER_UNIT == 0) {
                    unit = chunk_unit<FORMAT>(slot, lane);
                } else {
                    to_second_half<FORMAT>(unit);
                }
            }
// Slices of super-blocks are whole chunks; the most common rest of other slices is worth code of its own.
            if (K::C::SUPER || live >= K::BLOCKS) {
                add_blocks<QUADS, K::BLOCKS>(slot, 0, block_codes, block_sums, unit, lane, acc);
            } else if (K::BLOCKS == 4 && live == 3) {
                add_blocks<QUADS, 3>(slot, 0, block_codes, block_sums, unit, lane, acc);
            } else {
#pragma unroll 1
                for (u32 b = 0; b < live; ++b) add_blocks<QUADS, 1>(slot, b, block_codes, block_sums, unit, lane, acc);
            }
            block_codes += K::BLOCKS * M::CODES;
            block_sums += K::BLOCKS * M::SUMS;
            from = from + 1 == M::DEPTH ? 0 : from + 1;
            // Every lane has read what the next copy overwrites.
            __syncwarp();
            copy_next();
        }
    }

    // The same with 1 to MOST quads; once all warps have come so far, their sums go to `stored`, one quad behind the other.
    template <int MOST, class CopyNext>
    __device__ __forceinline__ void multiply_quads(u32 quads, u32 lane, const CopyNext& copy_next, float* stored) {
        if constexpr (MOST > 1) {
            if (quads < MOST) return multiply_quads<MOST - 1>(quads, lane, copy_next, stored);
        }
        float acc[MOST][4];
        multiply<MOST>(lane, copy_next, acc);
        // The sums of the tile before have been read.
        __syncthreads();
#pragma unroll
        for (int q = 0; q < MOST; ++q) {
            *(Floats4*)(stored + q * QUAD_COLUMNS * 32) = {{acc[q][0], acc[q][1], acc[q][2], acc[q][3]}};
        }
    }
};

// Place of row `row` of column `column` among the 32 partial sums of a column. The four rows of a lane are adjacent; groups of
// four are exchanged by column, so that the 16 bytes that eight lanes with four columns store at once fall into all banks.
__device__ __forceinline__ u32 partial_place(u32 row, u32 column) { return (row % 8 ^ column % 4 * 2) * 4 + row / 8; }

// Works through tasks `begin` to `end`: `items` of each group of columns, each a row tile (with two teams a pair of them,
// whose second may not exist) of `PASSES` weights one after the other.
//   place_of(group, tile, pass)      the weight and row tile to multiply; some that exist where `tile` does not
//   prepare()                        called when the first weights are on their way; all that has to wait waits here
//   open(group)                      copies a group's activations and returns its columns; without barriers
//   load(group, tile, pass, column)  what `finish` will need of memory, before a tile is multiplied
//   finish(held, group, tile, pass, index, column, sum)  is called by warps, for their row `lane` of their live columns:
//                                    the `index`-th is `column` + 8 `index`, the same for all passes of a task
template <int FORMAT, int PASSES, class M, class PlaceOf, class Prepare, class Open, class Load, class Finish>
__device__ __forceinline__ void batch_product(const M& memory, u32 blocks, u32 begin, u32 end, u32 items,
                                              const PlaceOf& place_of, const Prepare& prepare, const Open& open,
                                              const Load& load, const Finish& finish) {
    using C = Codec<FORMAT>;
    using K = Chunk<FORMAT>;
    if (begin >= end) {
        prepare();
        return;
    }
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    const u32 slice = warp % SLICES;
    const u32 team = warp / SLICES;
    const u32 units = blocks / C::BLOCKS;
    const u32 first_unit = slice_begin(slice, units);
    const u32 first_block = first_unit * C::BLOCKS;
    BatchSlice<FORMAT, M> own;
    own.ring = memory.rings + warp * M::RING;
    own.codes = memory.codes + first_block * M::CODES + lane / 8 * ACTIVATION_CODE_BYTES + lane % 4 * 16 + lane / 4 % 2 * 8;
    own.sums = memory.sums + first_block * M::SUMS + lane % 4 * KeptSums<FORMAT>::WORDS;
    own.share = (slice_begin(slice + 1, units) - first_unit) * C::BLOCKS;
    own.chunks = (own.share + K::BLOCKS - 1) / K::BLOCKS;
    own.from = 0;
    // The next chunk to copy.
    struct {
        u32 task, group, item, pass, chunk, to;
    } next = {begin, begin / items, begin % items, 0, 0, 0};
    const auto place = [&] {
        const SinglePass pass = place_of(next.group, next.item * M::TEAMS + team, next.pass);
        return CopyPlanes<FORMAT>(*pass.weight, pass.row_tile, first_unit, lane);
    };
    const SharedAddress target = shared_address(memory.rings + warp * M::RING + lane * 16);
    CopyPlanes<FORMAT> at = place();
    const auto copy_next = [&] {
        if (next.task < end && own.chunks > 0) {
            const u32 left = own.share - next.chunk * K::BLOCKS;
            copy_chunk<FORMAT>(target + next.to * K::BYTES, at, left < K::BLOCKS ? left : K::BLOCKS,
                               next.chunk % K::PER_UNIT == 0, lane);
            next.to = next.to + 1 == M::DEPTH ? 0 : next.to + 1;
            at.advance((next.chunk + 1) % K::PER_UNIT == 0);
            if (++next.chunk == own.chunks) {
                next.chunk = 0;
                if (++next.pass == PASSES) {
                    next.pass = 0;
                    ++next.task;
                    if (++next.item == items) {
                        next.item = 0;
                        ++next.group;
                    }
                }
                if (next.task < end) {
                    // The policy stays what it is, so that it need not be fetched anew for each copy.
                    CopyPlanes<FORMAT> moved = place();
                    moved.policy = at.policy;
                    at = moved;
                }
            }
        }
        commit_copies();
    };
#pragma unroll 1
    for (u32 i = 0; i < M::DEPTH; ++i) copy_next();
    prepare();
    const float* const sums_of_team = memory.partial + team * SLICES * M::COLUMNS * 32;
    // This lane's sums of the first quad.
    float* const stored = memory.partial + (warp * M::COLUMNS + lane % 4) * 32 + partial_place(lane / 4, lane % 4);
    u32 task = begin;
    u32 group = begin / items;
    u32 item = begin % items;
#pragma unroll 1
    while (task < end) {
        // Every warp has passed the barriers after its last product, so nothing reads the former activations.
        const u32 columns = open(group);
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        const u32 quads = (columns + QUAD_COLUMNS - 1) / QUAD_COLUMNS;
#pragma unroll 1
        for (; task < end && item < items; ++task, ++item) {
            const u32 tile = item * M::TEAMS + team;
            // Steps of few columns take turns at adding up.
            const u32 first_column = (slice + item) % 8;
#pragma unroll 1
            for (u32 pass = 0; pass < PASSES; ++pass) {
                const auto held = load(group, tile, pass, first_column);
                own.template multiply_quads<M::COLUMNS / QUAD_COLUMNS>(quads, lane, copy_next, stored);
                __syncthreads();
#pragma unroll
                for (u32 index = 0; index < M::PER_WARP; ++index) {
                    const u32 column = first_column + 8 * index;
                    if (column >= columns) continue;
                    const float* of_column = sums_of_team + column * 32 + partial_place(lane, column);
                    float total = 0.0f;
#pragma unroll
                    for (int s = 0; s < SLICES; ++s) total += of_column[s * M::COLUMNS * 32];
                    finish(held, group, tile, pass, index, column, total * C::POST);
                }
            }
        }
        item = 0;
        ++group;
    }
    wait_copies<0>();
}
