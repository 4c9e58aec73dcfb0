// The (token, choice) pairs of a step by expert, in groups that one CTA multiplies together: what every CTA of a batched
// product finds out for itself.
#pragma once
#include "common/routing.cuh"

// Most pairs and experts, `MAX_PAIRS` and `MAX_EXPERTS` in stream.rs.
#define MAX_GROUPED_PAIRS 512
#define MAX_GROUPED_EXPERTS 256

// What threads without a pair have for an expert.
#define NO_EXPERT 0xffffffffu

// Pairs of one expert: `count` from place `first` of the order on.
struct PairGroup {
    u32 expert;
    u32 first;
    u32 count;
};

// In shared memory; `PAIR_GROUP_BYTES` in stream.rs.
struct PairGroups {
    u16 order[MAX_GROUPED_PAIRS];   // pairs by expert, ascending
    u32 groups[MAX_GROUPED_PAIRS];  // by expert: expert, 10 bits of first, count
    u32 totals[MAX_GROUPED_EXPERTS / 32];

    __device__ __forceinline__ PairGroup group(u32 index) const {
        const u32 packed = groups[index];
        return {packed & 1023, packed >> 10 & 1023, packed >> 20};
    }
};

// Pairs of each expert among 32, then where the first of them goes. Needed only while groups are found.
struct PairCounts {
    u16 of[MAX_GROUPED_PAIRS / 32][MAX_GROUPED_EXPERTS];
};

// Fills `found` with groups of up to `most` pairs; returns how many there are. All THREADS threads call it, at least one for
// each expert; ends with a barrier.
template <u32 THREADS>
__device__ __forceinline__ u32 find_groups(const Routing& routing, u32 tokens, u32 most, PairGroups& found,
                                           PairCounts& counts) {
    static_assert(THREADS >= MAX_GROUPED_EXPERTS && MAX_GROUPED_PAIRS % THREADS == 0, "a thread per expert");
    constexpr u32 ROUNDS = MAX_GROUPED_PAIRS / THREADS;
    const u32 lane = threadIdx.x % 32;
    const u32 all = tokens * routing.top_k;
    const u32 total = all < MAX_GROUPED_PAIRS ? all : MAX_GROUPED_PAIRS;
    const u32 parts = (total + 31) / 32;
    u32 experts[ROUNDS];
#pragma unroll
    for (u32 round = 0; round < ROUNDS; ++round) {
        const u32 pair = round * THREADS + threadIdx.x;
        experts[round] = pair < total ? routing.experts[pair] : NO_EXPERT;
    }
    if (threadIdx.x < routing.expert_count) {
        for (u32 part = 0; part < parts; ++part) counts.of[part][threadIdx.x] = 0;
    }
    __syncthreads();
    // A pair's rank among those of its expert and 32.
    u32 ranks[ROUNDS];
#pragma unroll
    for (u32 round = 0; round < ROUNDS; ++round) {
        u32& expert = experts[round];
        if (expert >= routing.expert_count) expert = NO_EXPERT;
        const u32 same = __match_any_sync(0xffffffffu, expert);
        ranks[round] = __popc(same & ((1u << lane) - 1));
        if (expert != NO_EXPERT && ranks[round] == 0) {
            counts.of[(round * THREADS + threadIdx.x) / 32][expert] = (u16)__popc(same);
        }
    }
    __syncthreads();
    // Pairs in the upper half, groups in the lower, so that one sum adds up both.
    u32 own = 0;
    if (threadIdx.x < routing.expert_count) {
        u32 count = 0;
        for (u32 part = 0; part < parts; ++part) count += counts.of[part][threadIdx.x];
        own = count << 16 | (count + most - 1) / most;
    }
    u32 upto = own;
#pragma unroll
    for (u32 distance = 1; distance < 32; distance <<= 1) {
        const u32 other = __shfl_up_sync(0xffffffffu, upto, distance);
        upto += lane >= distance ? other : 0;
    }
    const u32 warp = threadIdx.x / 32;
    if (lane == 31 && warp < MAX_GROUPED_EXPERTS / 32) found.totals[warp] = upto;
    __syncthreads();
    u32 before = upto - own;
    u32 sum = 0;
#pragma unroll
    for (u32 other = 0; other < MAX_GROUPED_EXPERTS / 32; ++other) {
        const u32 of_warp = found.totals[other];
        if (other < warp) before += of_warp;
        sum += of_warp;
    }
    if (threadIdx.x < routing.expert_count) {
        const u32 start = before >> 16;
        u32 next = start;
        for (u32 part = 0; part < parts; ++part) {
            const u32 count = counts.of[part][threadIdx.x];
            counts.of[part][threadIdx.x] = (u16)next;
            next += count;
        }
        u32 group = before & 0xffff;
        for (u32 first = start; first < next; first += most) {
            const u32 count = next - first < most ? next - first : most;
            found.groups[group++] = threadIdx.x | first << 10 | count << 20;
        }
    }
    __syncthreads();
#pragma unroll
    for (u32 round = 0; round < ROUNDS; ++round) {
        const u32 pair = round * THREADS + threadIdx.x;
        if (experts[round] != NO_EXPERT) found.order[counts.of[pair / 32][experts[round]] + ranks[round]] = (u16)pair;
    }
    __syncthreads();
    return sum & 0xffff;
}
