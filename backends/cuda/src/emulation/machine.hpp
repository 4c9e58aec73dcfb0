// A CUDA device in one host thread, enough of it to run this repository's kernels: CTAs one after the other, each thread
// of a CTA a fibre, barriers and warp operations as the places where fibres change. It is a checker, not a simulator: no
// memory model, no overlap, copies are immediate. Every other CTA runs its threads backwards, so that a missing barrier
// shows as a wrong result. Included before a kernel's source, with HOST_EMULATION defined.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;

namespace machine {

struct Index {
    u32 x, y, z;
};

constexpr u32 MOST_THREADS = 1024;
constexpr u32 WARP = 32;
constexpr size_t STACK_BYTES = 64 << 10;
constexpr u32 EXCHANGE_BYTES = 64;

struct Warp {
    u32 alive, arrived, generation;
    alignas(16) u8 slots[2][WARP][EXCHANGE_BYTES];
};

struct Fibre {
    jmp_buf state;
    bool started, finished;
    u32 exchanges;  // warp operations so far: which of the two buffers is next
    Index index;
    u32 linear;
};

inline Fibre fibres[MOST_THREADS];
inline Warp warps[MOST_THREADS / WARP];
inline u8* stacks = nullptr;
inline Fibre* current = nullptr;
inline jmp_buf scheduler;
inline u32 alive, arrived, generation;
inline u64 progress;
inline Index block_index, block_size, grid_size;
inline void (*body)(const void*) = nullptr;
inline const void* body_args = nullptr;
inline char fault[256];

[[noreturn]] inline void fail(const char* what) {
    snprintf(fault, sizeof fault, "%s in CTA (%u, %u, %u)", what, block_index.x, block_index.y, block_index.z);
    longjmp(scheduler, 2);
}

inline void yield() {
    if (_setjmp(current->state) == 0) _longjmp(scheduler, 1);
}

// Waits until every thread of the CTA that still runs has come here.
inline void barrier() {
    const u32 mine = generation;
    ++progress;
    if (++arrived == alive) {
        arrived = 0;
        ++generation;
        return;
    }
    while (generation == mine) yield();
}

inline Warp& warp() { return warps[current->linear / WARP]; }

using Slots = u8 (*)[EXCHANGE_BYTES];

// Gives `value` to the other lanes of the warp; returns everybody's, by lane. Every lane that still runs must come.
// Two buffers take turns: a lane can be at most one exchange ahead of the slowest.
template <class T>
inline Slots exchange(const T& value) {
    static_assert(sizeof(T) <= EXCHANGE_BYTES, "an exchange carries at most 64 bytes");
    Warp& w = warp();
    const Slots buffer = w.slots[current->exchanges++ % 2];
    memcpy(buffer[current->linear % WARP], &value, sizeof(T));
    const u32 mine = w.generation;
    ++progress;
    if (++w.arrived == w.alive) {
        w.arrived = 0;
        ++w.generation;
    } else {
        while (w.generation == mine) yield();
    }
    return buffer;
}

template <class T>
inline T lane_value(Slots buffer, u32 lane) {
    T value;
    memcpy(&value, buffer[lane % WARP], sizeof(T));
    return value;
}

inline void leave() {
    current->finished = true;
    ++progress;
    Warp& w = warp();
    --alive;
    --w.alive;
    if (alive > 0 && arrived == alive) {
        arrived = 0;
        ++generation;
    }
    if (w.alive > 0 && w.arrived == w.alive) {
        w.arrived = 0;
        ++w.generation;
    }
    _longjmp(scheduler, 1);
}

inline void enter() {
    body(body_args);
    leave();
}

inline void start(Fibre& fibre) {
    static ucontext_t contexts[MOST_THREADS];
    ucontext_t& made = contexts[fibre.linear];
    getcontext(&made);
    made.uc_stack.ss_sp = stacks + fibre.linear * STACK_BYTES;
    made.uc_stack.ss_size = STACK_BYTES;
    made.uc_link = nullptr;
    makecontext(&made, enter, 0);
    fibre.started = true;
    setcontext(&made);
}

inline void run_block(u32 threads) {
    const bool backwards = (block_index.x + block_index.y + block_index.z) % 2 == 1;
    alive = threads;
    arrived = generation = 0;
    for (u32 i = 0; i < threads; ++i) {
        Fibre& fibre = fibres[i];
        fibre.started = fibre.finished = false;
        fibre.exchanges = 0;
        fibre.linear = i;
        fibre.index = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
        if (i % WARP == 0) warps[i / WARP].alive = warps[i / WARP].arrived = warps[i / WARP].generation = 0;
        ++warps[i / WARP].alive;
    }
    while (alive > 0) {
        const u64 before = progress;
        for (volatile u32 i = 0; i < threads; i = i + 1) {
            Fibre& next = fibres[backwards ? threads - 1 - i : i];
            if (next.finished) continue;
            current = &next;
            const int how = _setjmp(scheduler);
            if (how == 0) {
                if (current->started) _longjmp(current->state, 1);
                start(*current);
            }
            if (how == 2) return;
        }
        if (progress == before) {
            snprintf(fault, sizeof fault, "threads wait for each other in CTA (%u, %u, %u)", block_index.x, block_index.y,
                     block_index.z);
            return;
        }
    }
}

// Runs a whole grid; returns null or what went wrong.
inline const char* run(void (*kernel)(const void*), const void* args, const u32* grid, const u32* block) {
    if (!stacks) stacks = (u8*)aligned_alloc(64, MOST_THREADS * STACK_BYTES);
    body = kernel;
    body_args = args;
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {block[0], block[1], block[2]};
    fault[0] = 0;
    for (u32 z = 0; z < grid[2]; ++z)
        for (u32 y = 0; y < grid[1]; ++y)
            for (u32 x = 0; x < grid[0]; ++x) {
                block_index = {x, y, z};
                run_block(block[0] * block[1] * block[2]);
                if (fault[0]) return fault;
            }
    return nullptr;
}

}  // namespace machine

#define __device__
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __shared__ static
#define DYNAMIC_SHARED(T, name) alignas(16) alignas(T) static T name[(227 << 10) / sizeof(T)]
#define __constant__ static const
#define threadIdx (machine::current->index)
#define blockIdx (machine::block_index)
#define blockDim (machine::block_size)
#define gridDim (machine::grid_size)

#define CHECK_ARGS(kernel, Args) static_assert(sizeof(Args) == ARGS_BYTES_##kernel, "size of arguments")
#define KERNEL(name, Args, ...) CHECK_ARGS(name, Args); EMULATED(name, Args)
#define EMULATED(name, Args)                                                                       \
    static void name##_body(const Args& args);                                                     \
    static void name##_thread(const void* args) { name##_body(*(const Args*)args); }               \
    extern "C" const char* emulate_##name(const void* args, const u32* grid, const u32* block) {   \
        return machine::run(name##_thread, args, grid, block);                                     \
    }                                                                                              \
    static void name##_body(const Args& args)

struct float2 {
    float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

inline void __syncthreads() { machine::barrier(); }
inline void __syncwarp() { machine::exchange(0); }
inline void __threadfence() {}

template <class T>
inline T __shfl_sync(u32, T value, u32 lane) {
    const machine::Slots all = machine::exchange(value);
    return machine::lane_value<T>(all, lane);
}
template <class T>
inline T __shfl_xor_sync(u32, T value, u32 distance) {
    return __shfl_sync(0, value, (machine::current->linear % 32) ^ distance);
}
template <class T>
inline T __shfl_up_sync(u32, T value, u32 distance) {
    const u32 lane = machine::current->linear % 32;
    return __shfl_sync(0, value, lane < distance ? lane : lane - distance);
}
template <class T>
inline T __shfl_down_sync(u32, T value, u32 distance) {
    const u32 lane = machine::current->linear % 32;
    return __shfl_sync(0, value, lane + distance > 31 ? lane : lane + distance);
}
inline u32 __ballot_sync(u32, bool predicate) {
    const machine::Slots all = machine::exchange((u32)predicate);
    u32 bits = 0;
    for (u32 lane = 0; lane < 32; ++lane) bits |= machine::lane_value<u32>(all, lane) << lane;
    return bits;
}
template <class T>
inline u32 __match_any_sync(u32, T value) {
    const machine::Slots all = machine::exchange(value);
    u32 bits = 0;
    for (u32 lane = 0; lane < 32; ++lane) bits |= (u32)(machine::lane_value<T>(all, lane) == value) << lane;
    return bits;
}
inline u32 __reduce_max_sync(u32, u32 value) {
    const machine::Slots all = machine::exchange(value);
    u32 largest = 0;
    for (u32 lane = 0; lane < 32; ++lane) {
        const u32 other = machine::lane_value<u32>(all, lane);
        largest = other > largest ? other : largest;
    }
    return largest;
}
inline bool __any_sync(u32, bool predicate) { return __ballot_sync(0, predicate) != 0; }
inline bool __all_sync(u32, bool predicate) { return __ballot_sync(0, predicate) == 0xffffffffu; }

template <class T>
inline T atomicAdd(T* place, T value) {
    const T before = *place;
    *place = before + value;
    return before;
}

inline u32 __float_as_uint(float x) { u32 y; memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
inline float __int_as_float(i32 x) { return __uint_as_float((u32)x); }
inline i32 __float_as_int(float x) { return (i32)__float_as_uint(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline u32 __float2uint_rz(float x) { return !(x > 0.0f) ? 0u : x >= 4294967296.0f ? 0xffffffffu : (u32)x; }
inline i32 __float2int_rn(float x) {
    return std::isnan(x) ? 0 : x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? (i32)0x80000000 : (i32)nearbyintf(x);
}
inline u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
inline u64 __umul64hi(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
inline int __popc(u32 x) { return __builtin_popcount(x); }
inline int __clz(u32 x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(u32 x) { return __builtin_ffs((int)x); }
inline u32 min(u32 a, u32 b) { return a < b ? a : b; }
inline u32 max(u32 a, u32 b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

inline void wait_for_previous_kernel() {}
inline void allow_next_kernel() {}

inline float half_to_float(u16 bits) {
    const u32 sign = (u32)(bits & 0x8000) << 16;
    const u32 exponent = bits >> 10 & 31;
    const u32 fraction = bits & 1023;
    if (exponent == 0) return __uint_as_float(sign | __float_as_uint((float)fraction * 5.9604644775390625e-8f));
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}
inline u16 float_to_half(float value) {
    const u32 bits = __float_as_uint(value);
    const u16 sign = (u16)(bits >> 16 & 0x8000);
    const float magnitude = __uint_as_float(bits & 0x7fffffffu);
    if (std::isnan(value)) return 0x7fff;
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    if (magnitude < 6.103515625e-5f) return sign | (u16)nearbyintf(magnitude * 16777216.0f);
    const u32 rounded = (bits & 0x7fffffffu) + 0xfff + (bits >> 13 & 1);
    return sign | (u16)((rounded >> 13) - (112u << 10));
}
inline u32 pack_halves(float low, float high) { return (u32)float_to_half(low) | (u32)float_to_half(high) << 16; }
inline float reciprocal_approx(float x) { return 1.0f / x; }
inline float exp2_approx(float x) {
    const float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

// Tensor-core products, from everybody's fragments; lane = 4g + t as cuda/common/mma.cuh has it.
namespace machine {
struct Fragments {
    u32 a[4];
    u32 b[2];
};

template <class Sum, class Product>
inline void mma(Sum (&c)[4], const Fragments& mine, u32 per_word, u32 words, const Product& product) {
    const Slots all = exchange(mine);
    const u32 lane = current->linear % 32, g = lane / 4, t = lane % 4;
    for (u32 i = 0; i < 4; ++i) {
        const u32 row = g + (i >= 2 ? 8 : 0), column = 2 * t + i % 2;
        double sum = 0;
        for (u32 word = 0; word < words; ++word)
            for (u32 owner = 0; owner < 4; ++owner) {
                const Fragments a = lane_value<Fragments>(all, row % 8 * 4 + owner);
                const Fragments b = lane_value<Fragments>(all, column * 4 + owner);
                for (u32 part = 0; part < per_word; ++part)
                    sum += product(a.a[2 * word + row / 8], b.b[word], part);
            }
        c[i] = (Sum)((double)c[i] + sum);
    }
}

inline double product_s8(u32 a, u32 b, u32 part) { return (double)(i8)(a >> 8 * part) * (double)(i8)(b >> 8 * part); }
inline double product_f16(u32 a, u32 b, u32 part) {
    return (double)half_to_float((u16)(a >> 16 * part)) * (double)half_to_float((u16)(b >> 16 * part));
}
}  // namespace machine

inline void mma_s8_k32(i32 (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    machine::mma(c, {{a0, a1, a2, a3}, {b0, b1}}, 4, 2, machine::product_s8);
}
inline void mma_s8_k16(i32 (&c)[4], u32 a0, u32 a1, u32 b0) {
    machine::mma(c, {{a0, a1, 0, 0}, {b0, 0}}, 4, 1, machine::product_s8);
}
inline void mma_f16_k16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    machine::mma(c, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, 2, 2, machine::product_f16);
}
inline void load_transposed(u32 (&out)[4], const void* row) {
    const machine::Slots all = machine::exchange(row);
    const u32 lane = machine::current->linear % 32;
    for (u32 i = 0; i < 4; ++i) {
        const u16* first = machine::lane_value<const u16*>(all, 8 * i + lane % 4 * 2);
        const u16* second = machine::lane_value<const u16*>(all, 8 * i + lane % 4 * 2 + 1);
        out[i] = (u32)first[lane / 4] | (u32)second[lane / 4] << 16;
    }
}
inline u32 permute_bytes(u32 low, u32 high, u32 selector) {
    const u64 bytes = (u64)high << 32 | low;
    u32 result = 0;
    for (u32 i = 0; i < 4; ++i) {
        const u32 pick = selector >> 4 * i;
        u32 byte = (u32)(bytes >> 8 * (pick & 7)) & 255;
        if (pick & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}

template <class T>
inline T load_stream(const T* address) { return *address; }
inline float load_fresh(const float* address) { return *address; }
template <class T>
inline T load_anywhere(const T* address) { return *address; }
template <class T>
inline T load_ahead(const T* address) { return *address; }
typedef u8* SharedAddress;
inline SharedAddress shared_address(void* shared) { return (u8*)shared; }

typedef u64 CachePolicy;
inline CachePolicy read_once() { return 0; }

template <u32 TO, u32 FROM>
inline void copy_async_at(SharedAddress target, const void* source, CachePolicy) {
    memcpy(target + TO, (const u8*)source + FROM, 16);
}

inline void copy_async(void* shared, const void* source, bool valid) {
    if (valid) memcpy(shared, source, 16);
    else memset(shared, 0, 16);
}
template <class T>
inline T kept(T value) { return value; }
inline void copy_async(SharedAddress target, const void* source) { memcpy(target, source, 16); }
inline void commit_copies() {}
template <int PENDING>
inline void wait_copies() {}

#define OPERAND_STRIDE 128  // as cuda/common/warpgroup.cuh has it

// Products of warpgroups: each warp has its own rows, so that they are warps' products. Operands are addresses in units of 16
// bytes, which 32 bits hold because shared memory is the library's own: `shared_operand` counts from a fixed place.
namespace machine {
alignas(16) inline u8 shared_origin;
}
inline u32 shared_operand(const void* shared) { return (u32)(((intptr_t)shared - (intptr_t)&machine::shared_origin) >> 4); }
inline void products_begin() {}
template <bool KEEP, int N>
inline void products_add(float (&d)[N], const u32* a, u32 b) {
    const u8* operand = &machine::shared_origin + ((intptr_t)(i32)b << 4);
    const u32 lane = machine::current->linear % 32, g = lane / 4, t = lane % 4;
    const u32 rows[4] = {a[0], a[1], a[2], a[3]};
    for (u32 n = 0; n < N / 4; ++n) {
        float sums[4];
        u32 words[2];
        for (u32 c = 0; c < 4; ++c) sums[c] = KEEP ? d[4 * n + c] : 0.0f;
        for (u32 half = 0; half < 2; ++half) {
            const intptr_t address = (intptr_t)operand + (8 * n + g) * OPERAND_STRIDE + half * 16;
            memcpy(&words[half], (const u8*)(address ^ (address >> 7 & 7) << 4) + 4 * t, 4);
        }
        mma_f16_k16(sums, rows, words[0], words[1]);
        for (u32 c = 0; c < 4; ++c) d[4 * n + c] = sums[c];
    }
}
inline u32 subtract_halves(u32 a, u32 b) {
    const auto half = [](u32 word) { return half_to_float((u16)word); };
    return pack_halves(half(a) - half(b), half(a >> 16) - half(b >> 16));
}
inline u32 multiply_halves(u32 a, u32 b) {
    const auto half = [](u32 word) { return half_to_float((u16)word); };
    return pack_halves(half(a) * half(b), half(a >> 16) * half(b >> 16));
}
inline void products_commit() {}
template <int PENDING, int N>
inline void products_wait(float (&)[N]) {}
template <int REGISTERS>
inline void release_registers() {}
template <int REGISTERS>
inline void claim_registers() {}
inline void publish_operands() {}

struct alignas(8) PhaseBarrier {
    u16 count, missing;
    u32 phases;

    void open(u32 threads) {
        count = missing = (u16)threads;
        phases = 0;
    }
    void close() {}
    void arrive() {
        ++machine::progress;
        if (--missing == 0) {
            missing = count;
            ++phases;
        }
    }
    void arrive_behind_copies() { arrive(); }
    void expect(u32) {}
    void wait(u32 parity) {
        while (phases % 2 == parity) machine::yield();
        ++machine::progress;
    }
};
inline void copy_bulk(void* shared, const void* source, u32 bytes, PhaseBarrier&) { memcpy(shared, source, bytes); }
