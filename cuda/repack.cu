// repack: stored rows of a weight to the order kernels read (common/weight.cuh). Runs once per weight at upload.
//
// source: `rows` whole rows as the file has them, row_bytes apart, the first at row tile `first_tile` of the weight
// (counted through all experts); rows missing from the last tile become zeros.
// Grid: one thread per lane of a tile (repack_blocks) or per 16-byte chunk (repack_plain), 256 threads a CTA.
// Moves every byte in and out once; bound by the byte-wise gathers.
#include "common/async.cuh"
#include "common/weight.cuh"

struct RepackArgs {
    const u8* source;
    Weight weight;
    u64 row_bytes;
    u32 first_tile;
    u32 rows;
};

__device__ __forceinline__ u32 block_bytes(u32 format) {
    switch (format) {
        case FORMAT_Q4_0: return 18;
        case FORMAT_Q4_1: return 20;
        case FORMAT_Q5_0: return 22;
        case FORMAT_Q5_1: return 24;
        case FORMAT_Q8_0: return 34;
        case FORMAT_Q2_K: return 84;
        case FORMAT_Q3_K: return 110;
        case FORMAT_Q4_K: return 144;
        case FORMAT_Q5_K: return 176;
        case FORMAT_Q6_K: return 210;
        default: return 17;
    }
}

// Nibble e of a 32-element block's 16 bytes.
__device__ __forceinline__ u32 nibble(const u8* bytes, u32 e) { return (bytes[e % 16] >> (4 * (e / 16))) & 15; }

// Code of element e of a quant block in the form it is kept in: offset formats with their top bit flipped, so that the
// tensor cores read them as two's complement.
__device__ __forceinline__ u32 stored_code(u32 format, const u8* block, u32 e) {
    const u32 n = e / 128;
    const u32 j = e % 128 / 32;
    const u32 l = e % 32;
    switch (format) {
        case FORMAT_Q4_0: return nibble(block + 2, e) ^ 8;
        case FORMAT_Q4_1: return nibble(block + 4, e);
        case FORMAT_Q5_0: return nibble(block + 6, e) | (((block[2 + e / 8] >> (e % 8)) & 1) ^ 1) << 4;
        case FORMAT_Q5_1: return nibble(block + 8, e) | ((block[4 + e / 8] >> (e % 8)) & 1) << 4;
        case FORMAT_Q8_0: return block[2 + e];
        case FORMAT_Q2_K: return (block[16 + 32 * n + l] >> (2 * j)) & 3;
        case FORMAT_Q3_K: {
            const u32 low = (block[32 + 32 * n + l] >> (2 * j)) & 3;
            return low | (((block[l] >> (4 * n + j)) & 1) ^ 1) << 2;
        }
        case FORMAT_Q4_K: return (block[16 + 32 * (e / 64) + l] >> (4 * (e / 32 % 2))) & 15;
        case FORMAT_Q5_K: {
            const u32 low = (block[48 + 32 * (e / 64) + l] >> (4 * (e / 32 % 2))) & 15;
            return low | ((block[16 + l] >> (e / 32)) & 1) << 4;
        }
        case FORMAT_Q6_K: {
            const u32 low = (block[64 * n + 32 * (j % 2) + l] >> (4 * (j / 2))) & 15;
            return low | (((block[128 + 32 * n + l] >> (2 * j)) & 3) ^ 2) << 4;
        }
        default: return nibble(block + 1, e);
    }
}

__device__ __forceinline__ void copy_bytes(u8* to, const u8* from, u32 count) {
    for (u32 i = 0; i < count; ++i) to[i] = from ? from[i] : 0;
}

// The scale of one row and 32-column block, or the records of one row and super-block. `block` is null past the rows.
__device__ __forceinline__ void store_scales(const Weight& weight, u64 unit, u32 place, const u8* block) {
    u8* base = (u8*)weight.base;
    const u64 index = unit * 32 + place;
    const auto part = [&](u32 offset) { return block ? block + offset : (const u8*)0; };
    switch (weight.format) {
        case FORMAT_Q4_1:
        case FORMAT_Q5_1: copy_bytes(base + weight.scales + index * 4, part(0), 4); break;
        case FORMAT_MXFP4: copy_bytes(base + weight.scales + index, part(0), 1); break;
        case FORMAT_Q2_K:
            copy_bytes(base + weight.scales + index * 16, part(0), 16);
            copy_bytes(base + weight.supers + index * 4, part(80), 4);
            break;
        case FORMAT_Q3_K:
            copy_bytes(base + weight.scales + index * 16, part(96), 14);
            copy_bytes(base + weight.scales + index * 16 + 14, 0, 2);
            break;
        case FORMAT_Q4_K:
        case FORMAT_Q5_K: copy_bytes(base + weight.scales + index * 16, part(0), 16); break;
        case FORMAT_Q6_K:
            copy_bytes(base + weight.scales + index * 16, part(192), 16);
            copy_bytes(base + weight.supers + index * 2, part(208), 2);
            break;
        default: copy_bytes(base + weight.scales + index * 2, part(0), 2); break;
    }
}

KERNEL(repack_blocks, RepackArgs, 256) {
    const Weight& weight = args.weight;
    const u32 format = weight.format;
    const bool super = format >= FORMAT_Q2_K && format <= FORMAT_Q6_K;
    const u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u32 lane = index % 32;
    const u32 block = index / 32 % weight.blocks;
    const u32 first_row = (u32)(index / 32 / weight.blocks) * 32;
    if (first_row >= args.rows) return;
    const u64 tile = (u64)(args.first_tile + first_row / 32) * weight.blocks + block;
    const u32 per_unit = super ? 8 : 1;
    const u64 unit_offset = (u64)(block / per_unit) * block_bytes(format);
    const u32 g = lane / 4;
    const u32 t = lane % 4;
    Words4 nibbles = {0, 0, 0, 0};
    Words4 bytes[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    Words2 pairs = {0, 0};
    u32 high = 0;
#pragma unroll
    for (u32 w = 0; w < 4; ++w) {
        const u32 row = first_row + g + 8 * w;
        if (row >= args.rows) continue;
        const u8* source = args.source + row * args.row_bytes + unit_offset;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 slot = w % 2 + 2 * half;
            for (u32 i = 0; i < 4; ++i) {
                const u32 code = stored_code(format, source, block % per_unit * 32 + 16 * half + 4 * t + i);
                const u32 shift = format == FORMAT_MXFP4 ? 4 * (4 * half + i) : 8 * i + 4 * half;
                (&nibbles.x)[w] |= (code & 15) << shift;
                (&bytes[w / 2].x)[slot] |= code << (8 * i);
                const u32 pair = format == FORMAT_Q6_K ? code >> 4 : code & 3;
                (&pairs.x)[w / 2] |= pair << (8 * i + 6 - 2 * slot);
                const u32 bit = format == FORMAT_Q3_K ? code >> 2 : code >> 4 & 1;
                high |= bit << (8 * i + 7 - (4 * (w / 2) + slot));
            }
        }
    }
    u8* base = (u8*)weight.base;
    if (format == FORMAT_Q8_0) {
        *(Words4*)(base + tile * 1024 + lane * 16) = bytes[0];
        *(Words4*)(base + tile * 1024 + 512 + lane * 16) = bytes[1];
    } else if (format == FORMAT_Q2_K || format == FORMAT_Q3_K) {
        *(Words2*)(base + tile * 256 + lane * 8) = pairs;
    } else {
        *(Words4*)(base + tile * 512 + lane * 16) = nibbles;
    }
    if (format == FORMAT_Q6_K) *(Words2*)(base + weight.high + tile * 256 + lane * 8) = pairs;
    if (format == FORMAT_Q5_0 || format == FORMAT_Q5_1 || format == FORMAT_Q5_K || format == FORMAT_Q3_K) {
        *(u32*)(base + weight.high + tile * 128 + lane * 4) = high;
    }
    if (block % per_unit == 0) {
        // This lane's place among the tile's scales: row lane / 4 + 8 (lane % 4).
        const u32 row = first_row + lane / 4 + 8 * (lane % 4);
        const u8* source = row < args.rows ? args.source + row * args.row_bytes + unit_offset : (const u8*)0;
        store_scales(weight, tile / per_unit, lane, source);
    }
}

KERNEL(repack_plain, RepackArgs, 256) {
    const Weight& weight = args.weight;
    const u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u32 in_tile = index % 8;
    const u32 chunk = index / 8 % weight.blocks;
    const u32 first_row = (u32)(index / 8 / weight.blocks) * 8;
    if (first_row >= args.rows) return;
    const u32 row = first_row + in_tile;
    u8* to = (u8*)weight.base + (((u64)(args.first_tile + first_row / 8) * weight.blocks + chunk) * 8 + in_tile) * 16;
    const u64 offset = (u64)chunk * 16;
    const u8* from = args.source + row * args.row_bytes + offset;
    for (u32 i = 0; i < 16; ++i) to[i] = row < args.rows && offset + i < args.row_bytes ? from[i] : 0;
}
