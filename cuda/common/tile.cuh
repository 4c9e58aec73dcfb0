// A warp's product of a 32 x 32 tile of a quantised weight with activations: the one arithmetic of every product.
//
// For each block of 32 columns: I = sum of codes x activation codes, exact in 32-bit integers on the tensor cores
// (two products: high and low bytes of the activation); s = scale_x * float(I); acc = fma(d, s, acc), and for formats
// with a minimum acc = fma(m, scale_x * sum(q), acc). 16-column sub-blocks do so twice. Blocks go in ascending order
// inside a slice, slices are added in ascending order (`slice_begin`). Nothing of this depends on how many columns of
// activations there are or which column a token sits in.
#pragma once
#include "common/activation.cuh"
#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/weight.cuh"

// Contraction slices of a row. One warp takes one slice in the kernels that split the contraction.
#define SLICES 8

// First scale unit of a slice.
__device__ __forceinline__ u32 slice_begin(u32 slice, u32 units) { return (u32)((u64)slice * units / SLICES); }

template <int FORMAT>
struct Codec {
    static constexpr bool SUPER = FORMAT >= FORMAT_Q2_K && FORMAT <= FORMAT_Q6_K;
    // Blocks per scale unit.
    static constexpr u32 BLOCKS = SUPER ? 8 : 1;
    // Whether 16-column halves have scales of their own.
    static constexpr bool HALVES = FORMAT == FORMAT_Q2_K || FORMAT == FORMAT_Q3_K || FORMAT == FORMAT_Q6_K;
    static constexpr bool MINIMUM = FORMAT == FORMAT_Q4_1 || FORMAT == FORMAT_Q5_1 || FORMAT == FORMAT_Q2_K ||
                                    FORMAT == FORMAT_Q4_K || FORMAT == FORMAT_Q5_K;
    static constexpr bool BIASED = FORMAT == FORMAT_MXFP4;
    // Codes as the tensor cores see them are the format's codes times 1 / POST: applied once, at the end, exact.
    static constexpr float POST = FORMAT == FORMAT_Q4_0   ? 0.0625f
                                  : FORMAT == FORMAT_Q5_0 ? 0.125f
                                  : FORMAT == FORMAT_Q6_K ? 0.25f
                                  : FORMAT == FORMAT_Q3_K ? 0.03125f
                                  : FORMAT == FORMAT_MXFP4 ? 0.5f
                                                           : 1.0f;
};

// One lane's codes of a tile.
struct TileCodes {
    Words4 codes[2];
    Words2 pairs;
    u32 high;
};

// Bytes of each plane from one block (unit for scales and supers) to the next.
template <int FORMAT>
struct Strides {
    static constexpr u32 CODES = FORMAT == FORMAT_Q8_0 ? 1024 : FORMAT == FORMAT_Q2_K || FORMAT == FORMAT_Q3_K ? 256 : 512;
    static constexpr u32 HIGH = FORMAT == FORMAT_Q6_K ? 256 : 128;
    static constexpr u32 SCALES = Codec<FORMAT>::SUPER                               ? 512
                                  : FORMAT == FORMAT_Q4_1 || FORMAT == FORMAT_Q5_1 ? 128
                                  : FORMAT == FORMAT_MXFP4                         ? 32
                                                                                   : 64;
    static constexpr u32 SUPERS = FORMAT == FORMAT_Q2_K ? 128 : 64;
};

// A lane's place in each plane: row tile `row_tile` (counted through all experts), unit `unit` of it.
template <int FORMAT>
struct LanePlanes {
    using S = Strides<FORMAT>;
    const u8* codes;
    const u8* high;
    const u8* scales;
    const u8* supers;

    __device__ __forceinline__ LanePlanes(const Weight& weight, u64 row_tile, u32 unit, u32 lane) {
        const u64 first = row_tile * weight.blocks;
        const u64 block = first + unit * Codec<FORMAT>::BLOCKS;
        const u64 units = first / Codec<FORMAT>::BLOCKS + unit;
        codes = weight.base + block * S::CODES + lane * (S::CODES == 256 ? 8 : 16);
        high = weight.base + weight.high + block * S::HIGH + lane * (S::HIGH / 32);
        const u32 place = Codec<FORMAT>::SUPER ? lane : lane / 4 * 4;
        scales = weight.base + weight.scales + units * S::SCALES + place * (S::SCALES / 32);
        supers = weight.base + weight.supers + units * S::SUPERS + place * (S::SUPERS / 32);
    }

    // `blocks` further, a multiple of the unit's.
    __device__ __forceinline__ void advance(u32 blocks) {
        codes += blocks * S::CODES;
        high += blocks * S::HIGH;
        scales += blocks / Codec<FORMAT>::BLOCKS * S::SCALES;
        supers += blocks / Codec<FORMAT>::BLOCKS * S::SUPERS;
    }
};

// The codes of block `block`, counted from the place.
template <int FORMAT>
__device__ __forceinline__ TileCodes load_codes(const LanePlanes<FORMAT>& at, u32 block) {
    using S = Strides<FORMAT>;
    TileCodes raw;
    if constexpr (FORMAT == FORMAT_Q8_0) {
        raw.codes[0] = load_stream((const Words4*)(at.codes + block * S::CODES));
        raw.codes[1] = load_stream((const Words4*)(at.codes + block * S::CODES + 512));
    } else if constexpr (S::CODES == 256) {
        raw.pairs = load_stream((const Words2*)(at.codes + block * S::CODES));
    } else {
        raw.codes[0] = load_stream((const Words4*)(at.codes + block * S::CODES));
    }
    if constexpr (FORMAT == FORMAT_Q6_K) raw.pairs = load_stream((const Words2*)(at.high + block * S::HIGH));
    if constexpr (FORMAT == FORMAT_Q5_0 || FORMAT == FORMAT_Q5_1 || FORMAT == FORMAT_Q5_K || FORMAT == FORMAT_Q3_K) {
        raw.high = load_stream((const u32*)(at.high + block * S::HIGH));
    }
    return raw;
}

// `value` shifted left by a compile-time amount, right when it is negative.
template <int SHIFT>
__device__ __forceinline__ u32 shifted(u32 value) {
    if constexpr (SHIFT >= 0) return value << SHIFT;
    return value >> (SHIFT < 0 ? -SHIFT : 0);
}

// Four signed bytes: rows g + 16 M + 8 (SLOT % 2), columns 16 (SLOT / 2) + 4t .. + 3, of every format but MXFP4.
template <int FORMAT, int M, int SLOT>
__device__ __forceinline__ u32 fragment(const TileCodes& raw) {
    constexpr int PLACE = 4 * M + SLOT;
    constexpr int WORD = 2 * M + SLOT % 2;
    const u32 word = WORD == 0 ? raw.codes[0].x : WORD == 1 ? raw.codes[0].y : WORD == 2 ? raw.codes[0].z : raw.codes[0].w;
    const u32 pair = M == 0 ? raw.pairs.x : raw.pairs.y;
    constexpr int NIBBLE = SLOT / 2 * 4;
    if constexpr (FORMAT == FORMAT_Q8_0) {
        const Words4& codes = raw.codes[M];
        return SLOT == 0 ? codes.x : SLOT == 1 ? codes.y : SLOT == 2 ? codes.z : codes.w;
    } else if constexpr (FORMAT == FORMAT_Q4_0) {
        return shifted<4 - NIBBLE>(word) & 0xf0f0f0f0u;
    } else if constexpr (FORMAT == FORMAT_Q4_1 || FORMAT == FORMAT_Q4_K) {
        return shifted<-NIBBLE>(word) & 0x0f0f0f0fu;
    } else if constexpr (FORMAT == FORMAT_Q5_0) {
        return (shifted<3 - NIBBLE>(word) & 0x78787878u) | (shifted<PLACE>(raw.high) & 0x80808080u);
    } else if constexpr (FORMAT == FORMAT_Q5_1 || FORMAT == FORMAT_Q5_K) {
        return (shifted<-NIBBLE>(word) & 0x0f0f0f0fu) | (shifted<PLACE - 3>(raw.high) & 0x10101010u);
    } else if constexpr (FORMAT == FORMAT_Q6_K) {
        return (shifted<2 - NIBBLE>(word) & 0x3c3c3c3cu) | (shifted<2 * SLOT>(pair) & 0xc0c0c0c0u);
    } else if constexpr (FORMAT == FORMAT_Q3_K) {
        return (shifted<2 * SLOT - 1>(pair) & 0x60606060u) | (shifted<PLACE>(raw.high) & 0x80808080u);
    } else {
        return shifted<2 * SLOT - 6>(pair) & 0x03030303u;
    }
}

// Four MXFP4 codes (the low 16 bits of `codes`) to bytes of 192 + 2 E2M1. A code whose sign does not match a table
// replicates that table's top bit, which is one: `and` keeps the other table's byte.
__device__ __forceinline__ u32 mxfp4_bytes(u32 codes, u32 flipped) {
    return permute_bytes(0xc3c2c1c0u, 0xccc8c6c4u, codes) & permute_bytes(0xbdbebfc0u, 0xb4b8babcu, flipped);
}

template <int FORMAT, int M>
__device__ __forceinline__ void fragments(const TileCodes& raw, u32 (&a)[4]) {
    if constexpr (FORMAT == FORMAT_MXFP4) {
        const u32 first = M == 0 ? raw.codes[0].x : raw.codes[0].z;
        const u32 second = M == 0 ? raw.codes[0].y : raw.codes[0].w;
        const u32 first_flipped = first ^ 0x88888888u;
        const u32 second_flipped = second ^ 0x88888888u;
        a[0] = mxfp4_bytes(first, first_flipped);
        a[1] = mxfp4_bytes(second, second_flipped);
        a[2] = mxfp4_bytes(first >> 16, first_flipped >> 16);
        a[3] = mxfp4_bytes(second >> 16, second_flipped >> 16);
    } else {
        a[0] = fragment<FORMAT, M, 0>(raw);
        a[1] = fragment<FORMAT, M, 1>(raw);
        a[2] = fragment<FORMAT, M, 2>(raw);
        a[3] = fragment<FORMAT, M, 3>(raw);
    }
}

// Scales of one unit as they lie in memory: of a lane's four rows g + 8w, or for super-blocks of row g + 8t alone (the
// four lanes of a quad have all four between them).
struct ScaleRecord {
    Words4 row;
    u32 super;
};

template <int FORMAT>
__device__ __forceinline__ ScaleRecord load_record(const LanePlanes<FORMAT>& at, u32 unit) {
    using S = Strides<FORMAT>;
    ScaleRecord record;
    const u8* scales = at.scales + unit * S::SCALES;
    if constexpr (Codec<FORMAT>::SUPER || S::SCALES == 128) {
        record.row = load_stream((const Words4*)scales);
        if constexpr (FORMAT == FORMAT_Q2_K) record.super = load_stream((const u32*)(at.supers + unit * S::SUPERS));
        if constexpr (FORMAT == FORMAT_Q6_K) record.super = load_stream((const u16*)(at.supers + unit * S::SUPERS));
    } else if constexpr (S::SCALES == 64) {
        const Words2 words = load_stream((const Words2*)scales);
        record.row.x = words.x;
        record.row.y = words.y;
    } else {
        record.row.x = load_stream((const u32*)scales);
    }
    return record;
}

__device__ __forceinline__ float low_half(u32 word) { return half_to_float((u16)word); }
__device__ __forceinline__ float high_half(u32 word) { return half_to_float((u16)(word >> 16)); }

// Scales of a unit taken apart: the words of four rows, or 16 bytes of one row's sub-scales and its super-scales.
struct UnitScales {
    u32 words[5];
};

template <int FORMAT>
__device__ __forceinline__ UnitScales unpack(const ScaleRecord& record) {
    const Words4& row = record.row;
    UnitScales scales = {{row.x, row.y, row.z, row.w, record.super}};
    if constexpr (FORMAT == FORMAT_Q4_K || FORMAT == FORMAT_Q5_K) {
        // A 12-byte table of 6-bit pairs to bytes: scales 0-3, 4-7, minima 0-3, 4-7.
        scales.words[0] = row.y & 0x3f3f3f3fu;
        scales.words[1] = (row.w & 0x0f0f0f0fu) | ((row.y >> 2) & 0x30303030u);
        scales.words[2] = row.z & 0x3f3f3f3fu;
        scales.words[3] = ((row.w >> 4) & 0x0f0f0f0fu) | ((row.z >> 2) & 0x30303030u);
        scales.words[4] = row.x;
    } else if constexpr (FORMAT == FORMAT_Q3_K) {
        // A 12-byte table to 16 bytes of 0..63.
        scales.words[0] = (row.x & 0x0f0f0f0fu) | ((row.z << 4) & 0x30303030u);
        scales.words[1] = (row.y & 0x0f0f0f0fu) | ((row.z << 2) & 0x30303030u);
        scales.words[2] = ((row.x >> 4) & 0x0f0f0f0fu) | (row.z & 0x30303030u);
        scales.words[3] = ((row.y >> 4) & 0x0f0f0f0fu) | ((row.z >> 2) & 0x30303030u);
        scales.words[4] = row.w;
    }
    return scales;
}

// Byte `index` of four words.
__device__ __forceinline__ u32 byte_of(const u32* words, u32 index) {
    const u32 i = index / 4;
    const u32 word = i == 0 ? words[0] : i == 1 ? words[1] : i == 2 ? words[2] : words[3];
    return (word >> (8 * (index % 4))) & 255;
}

// What block j of a unit is multiplied with: per column half (where halves differ) and row g + 8w, the factor of the codes
// and what is added for every unit of activation (the minimum, signed).
template <int FORMAT>
struct BlockScales {
    static constexpr int PARTS = Codec<FORMAT>::HALVES ? 2 : 1;
    float code[PARTS][4];
    float least[PARTS][4];
};

// The value of the quad's lane w.
__device__ __forceinline__ float from_quad(float value, u32 w) {
    return __shfl_sync(0xffffffffu, value, (threadIdx.x & 28) | w);
}

// The same for one row: `code`, `least`.
struct RowScale {
    float code;
    float least;
};

// Of block j of a super-block and its column half `part` (0 where halves do not differ), for the row whose sub-scales these
// are.
template <int FORMAT>
__device__ __forceinline__ RowScale super_scale(const UnitScales& scales, u32 j, int part) {
    const u32* words = scales.words;
    const float super = low_half(words[4]);
    RowScale out = {0.0f, 0.0f};
    if constexpr (FORMAT == FORMAT_Q4_K || FORMAT == FORMAT_Q5_K) {
        out.code = super * (float)byte_of(words, j);
        out.least = -high_half(words[4]) * (float)byte_of(words, 8 + j);
    } else {
        const u32 sub = byte_of(words, 2 * j + part);
        if constexpr (FORMAT == FORMAT_Q6_K) out.code = super * (float)(i8)sub;
        if constexpr (FORMAT == FORMAT_Q3_K) out.code = super * (float)((i32)sub - 32);
        if constexpr (FORMAT == FORMAT_Q2_K) {
            out.code = super * (float)(sub & 15);
            out.least = -high_half(words[4]) * (float)(sub >> 4);
        }
    }
    return out;
}

template <int FORMAT>
__device__ __forceinline__ BlockScales<FORMAT> block_scales(const UnitScales& scales, u32 j) {
    const u32* words = scales.words;
    BlockScales<FORMAT> out;
    if constexpr (Codec<FORMAT>::SUPER) {
#pragma unroll
        for (int part = 0; part < BlockScales<FORMAT>::PARTS; ++part) {
            const RowScale row = super_scale<FORMAT>(scales, j, part);
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                out.code[part][w] = from_quad(row.code, w);
                if constexpr (Codec<FORMAT>::MINIMUM) out.least[part][w] = from_quad(row.least, w);
            }
        }
    } else {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            if constexpr (Codec<FORMAT>::MINIMUM) {
                out.code[0][w] = low_half(words[w]);
                out.least[0][w] = high_half(words[w]);
            } else if constexpr (FORMAT == FORMAT_MXFP4) {
                out.code[0][w] = __uint_as_float(((words[0] >> (8 * w)) & 255) << 23);
            } else {
                out.code[0][w] = w % 2 == 0 ? low_half(words[w / 2]) : high_half(words[w / 2]);
            }
        }
    }
    return out;
}

// Accumulators of one warp: 32 rows x 8 NT columns. [m][n][c]: row g + 16m + 8 (c / 2), column 8n + 2t + c % 2.
template <int NT>
struct Accumulators {
    float at[2][NT][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int c = 0; c < 4; ++c) at[m][n][c] = 0.0f;
    }
};

// Activations of one block and all columns, as a lane needs them: codes of column 8n + g, sums of 8n + 2t and 8n + 2t + 1.
template <int NT>
struct BlockColumns {
    ActivationCodes codes[NT];
    ActivationSums sums[NT][2];
};

__device__ __forceinline__ float block_sum(i32 high, i32 low) { return (float)((i32)((u32)high << 8) + low); }

// Adds a block's sum of codes times the scales of the weight and of the activations. MXFP4's scales are powers of two and
// products with them exact (above 2^-126), wherever they are formed: with the weights already, in the warpgroups' shape.
template <int FORMAT>
__device__ __forceinline__ float add_scaled(float weight, float activation, float sum, float acc) {
    if constexpr (FORMAT == FORMAT_MXFP4) return fmaf(weight * activation, sum, acc);
    return fmaf(weight, activation * sum, acc);
}

// Adds 16 rows x 8 columns of one block to `acc`: row half `m` of the tile.
template <int FORMAT>
__device__ __forceinline__ void add_block(const u32 (&a)[4], const BlockScales<FORMAT>& scales, int m,
                                          const ActivationCodes& x, const ActivationSums (&sums)[2],
                                          float (&acc)[4]) {
    using C = Codec<FORMAT>;
    #pragma unroll
    for (int part = 0; part < BlockScales<FORMAT>::PARTS; ++part) {
        i32 high[4] = {0, 0, 0, 0};
        i32 low[4] = {0, 0, 0, 0};
        if constexpr (C::HALVES) {
            mma_s8_k16(high, a[2 * part], a[2 * part + 1], part == 0 ? x.x : x.y);
            mma_s8_k16(low, a[2 * part], a[2 * part + 1], part == 0 ? x.z : x.w);
        } else {
            if constexpr (C::BIASED) {
                low[0] = low[2] = sums[0].bias;
                low[1] = low[3] = sums[1].bias;
            }
            mma_s8_k32(high, a[0], a[1], a[2], a[3], x.x, x.y);
            mma_s8_k32(low, a[0], a[1], a[2], a[3], x.z, x.w);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            acc[c] = add_scaled<FORMAT>(scales.code[part][2 * m + c / 2], sums[c % 2].scale, block_sum(high[c], low[c]), acc[c]);
        }
        if constexpr (C::MINIMUM) {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const ActivationSums& own = sums[c % 2];
                const float sum = C::HALVES ? (part == 0 ? own.low_half : own.high_half) : own.low_half + own.high_half;
                acc[c] = fmaf(scales.least[part][2 * m + c / 2], sum, acc[c]);
            }
        }
    }
}

// Whether groups of columns from the n-th on hold nothing, of `groups` that do. Asked of every other group only, so that no
// branch keeps two from hiding each other's latency; formats whose many scales leave no registers for two are asked each time.
template <int FORMAT>
__device__ __forceinline__ bool ends_before(int n, int groups) {
    constexpr bool ALONE = Codec<FORMAT>::SUPER && Codec<FORMAT>::MINIMUM;
    return n > 0 && (ALONE || n % 2 == 0) && n >= groups;
}

// Adds block j of a unit for all columns, as far as they hold something.
template <int FORMAT, int NT>
__device__ __forceinline__ void add_tile(const TileCodes& raw, const UnitScales& unit, u32 j,
                                         const BlockColumns<NT>& x, int groups, Accumulators<NT>& acc) {
    const BlockScales<FORMAT> scales = block_scales<FORMAT>(unit, j);
    u32 first[4], second[4];
    fragments<FORMAT, 0>(raw, first);
    fragments<FORMAT, 1>(raw, second);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
        if (ends_before<FORMAT>(n, groups)) break;
        add_block<FORMAT>(first, scales, 0, x.codes[n], x.sums[n], acc.at[0][n]);
        add_block<FORMAT>(second, scales, 1, x.codes[n], x.sums[n], acc.at[1][n]);
    }
}

// A warp's window on the blocks it multiplies: DEPTH blocks are loaded before they are needed. As soon as a block is used, its
// place takes the block DEPTH further.
template <int FORMAT, u32 BLOCKS = (FORMAT == FORMAT_MXFP4 ? 6 : 4)>
struct Window {
    static constexpr bool SUPER = Codec<FORMAT>::SUPER;
    static constexpr u32 DEPTH = BLOCKS;
    TileCodes raw[DEPTH];
    ScaleRecord records[SUPER ? 1 : DEPTH];

    // Loads what there is of the first DEPTH of `blocks` blocks.
    __device__ __forceinline__ void open(const LanePlanes<FORMAT>& at, u32 blocks) {
        if (SUPER && blocks > 0) records[0] = load_record<FORMAT>(at, 0);
#pragma unroll
        for (u32 j = 0; j < DEPTH; ++j) {
            if (j >= blocks) break;
            raw[j] = load_codes<FORMAT>(at, j);
            if (!SUPER) records[SUPER ? 0 : j] = load_record<FORMAT>(at, j);
        }
    }
};

// Adds the `blocks` blocks from `at` on, whose first are in the window, times the columns of `rows`. The activations of the next
// block are on their way while one is multiplied, for nothing else hides how far away they lie; but super-blocks with one group
// of columns have no registers for that, and twice the warps.
template <int FORMAT, int NT, class W, class Rows>
__device__ __forceinline__ void add_slice(W& window, LanePlanes<FORMAT>& at, u32 blocks, Rows& rows, int groups,
                                          Accumulators<NT>& acc) {
    constexpr u32 STEP = W::SUPER ? 8 : W::DEPTH;
    constexpr bool AHEAD = !W::SUPER || NT > 1;
    static_assert(STEP % 2 == 0, "activations alternate between two places");
    BlockColumns<NT> x[2];
    if (AHEAD && blocks > 0) rows.template load<FORMAT, true>(0, groups, x[0]);
#pragma unroll 1
    for (u32 first = 0; first < blocks; first += STEP) {
        // Blocks that follow this step's.
        const u32 ahead = first + STEP < blocks ? blocks - first - STEP : 0;
        if constexpr (W::SUPER) {
            const UnitScales scales = unpack<FORMAT>(window.records[0]);
#pragma unroll
            for (u32 j = 0; j < STEP; ++j) {
                if (j == STEP - W::DEPTH && ahead > 0) {
                    at.advance(STEP);
                    window.records[0] = load_record<FORMAT>(at, 0);
                }
                if constexpr (!AHEAD) rows.template load<FORMAT, false>(first + j, groups, x[j % 2]);
                if (AHEAD && first + j + 1 < blocks) rows.template load<FORMAT, true>(j + 1, groups, x[(j + 1) % 2]);
                TileCodes& raw = window.raw[j % W::DEPTH];
                add_tile<FORMAT, NT>(raw, scales, j, x[j % 2], groups, acc);
                const u32 used = j + W::DEPTH;
                if (used < STEP) {
                    raw = load_codes<FORMAT>(at, used);
                } else if (ahead > 0) {
                    raw = load_codes<FORMAT>(at, used - STEP);
                }
            }
        } else {
            at.advance(STEP);
#pragma unroll
            for (u32 j = 0; j < STEP; ++j) {
                if (first + j < blocks) {
                    if (first + j + 1 < blocks) rows.template load<FORMAT, true>(j + 1, groups, x[(j + 1) % 2]);
                    add_tile<FORMAT, NT>(window.raw[j], unpack<FORMAT>(window.records[j]), 0, x[j % 2], groups, acc);
                }
                if (j < ahead) {
                    window.raw[j] = load_codes<FORMAT>(at, j);
                    window.records[j] = load_record<FORMAT>(at, j);
                }
            }
        }
        if constexpr (AHEAD) rows.advance(STEP);
    }
}
