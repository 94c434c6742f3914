// Runs a kernel's own source on the CPU, so that tests need no GPU: the threads of a block are fibers, which run one at a time from barrier
// to barrier in an order that SEED decides, a warp ahead of the others as far as its own barriers let it. A kernel that depends on that order
// has a race, or lacks a barrier. Shared memory is as large as the launch says, to the byte, and starts as NaN.
#pragma once
#define ELM_ON_CPU
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
// ucontext asks the kernel for the signal mask at every switch: ten times as slow.
extern "C" void cuda_on_cpu_switch(void **from, void *to);
asm(R"(
.text
.globl cuda_on_cpu_switch
.hidden cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");
struct Context {
    void *top = nullptr;
    void start(char *stack, size_t size, void (*entry)()) {
        void **p = (void **)((uintptr_t)(stack + size) / 16 * 16);
        *--p = nullptr;  // where `entry` would return to: it does not
        *--p = (void *)entry;
        p -= 6;
        std::memset(p, 0, 6 * sizeof(void *));
        top = p;
    }
    static void change(Context &from, Context &to) { cuda_on_cpu_switch(&from.top, to.top); }
};
#else
#include <ucontext.h>
struct Context {
    ucontext_t state;
    void start(char *stack, size_t size, void (*entry)()) {
        getcontext(&state);
        state.uc_stack.ss_sp = stack;
        state.uc_stack.ss_size = size;
        makecontext(&state, entry, 0);
    }
    static void change(Context &from, Context &to) { swapcontext(&from.state, &to.state); }
};
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict

struct dim3 {
    unsigned x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }

namespace on_cpu {

enum class State { READY, AT_BLOCK, AT_WARP, DONE };
struct Fiber {
    Context context;
    std::unique_ptr<char[]> stack;
    State state;
    unsigned id;
};
constexpr size_t STACK = 1 << 17;

static std::vector<Fiber> fibers;
static Context home;
static Fiber *running;
static dim3 grid, block, at;
static std::unique_ptr<char[]> shared;
static std::vector<double> slot;
static const std::function<void()> *body;

inline void wait(State state) {
    running->state = state;
    Context::change(running->context, home);
}
inline void entry() {
    (*body)();
    wait(State::DONE);
}

// Whether all living threads from `first` to `last` wait for `state`; then they may go on.
inline bool release(unsigned first, unsigned last, State state) {
    bool any = false;
    for (unsigned i = first; i < last; i++) {
        if (fibers[i].state == State::DONE) continue;
        if (fibers[i].state != state) return false;
        any = true;
    }
    for (unsigned i = first; any && i < last; i++)
        if (fibers[i].state == state) fibers[i].state = State::READY;
    return any;
}

// false: a barrier or shuffle that not all threads of the block or warp reach.
inline bool run_block(unsigned seed, std::mt19937 &random) {
    const unsigned n = block.x;
    const unsigned warps = (n + 31) / 32;
    std::vector<unsigned> order(n), of_warps(warps);
    for (unsigned i = 0; i < n; i++) {
        fibers[i].id = i;
        fibers[i].state = State::READY;
        fibers[i].context.start(fibers[i].stack.get(), STACK, entry);
        order[i] = i;
    }
    for (unsigned w = 0; w < warps; w++) of_warps[w] = w;
    if (seed == 1) {
        std::reverse(of_warps.begin(), of_warps.end());
        for (unsigned w = 0; w < warps; w++) std::reverse(order.begin() + 32 * w, order.begin() + std::min(32 * w + 32, n));
    }
    for (;;) {
        bool ran = false;
        if (seed > 1) std::shuffle(of_warps.begin(), of_warps.end(), random);
        // A warp runs on while it waits for itself alone: it must not need that for the others to keep up.
        for (unsigned w : of_warps) {
            const unsigned first = 32 * w, last = std::min(first + 32, n);
            bool again;
            do {
                if (seed > 1) std::shuffle(order.begin() + first, order.begin() + last, random);
                for (unsigned at = first; at < last; at++) {
                    if (fibers[order[at]].state != State::READY) continue;
                    running = &fibers[order[at]];
                    Context::change(home, running->context);
                    ran = true;
                }
                again = release(first, last, State::AT_WARP);
            } while (again && (seed < 2 || random() % 4));
        }
        const bool released = release(0, n, State::AT_BLOCK);
        if (std::all_of(fibers.begin(), fibers.begin() + n, [](const Fiber &f) { return f.state == State::DONE; })) return true;
        if (!ran && !released) return false;
    }
}

// seed 0: threads in order, 1: backward, else shuffled.
inline int launch(dim3 g, dim3 b, size_t bytes, unsigned seed, const std::function<void()> &f) {
    grid = g, block = b, body = &f;
    while (fibers.size() < b.x) {
        fibers.emplace_back();
        fibers.back().stack.reset(new char[STACK]);
    }
    slot.assign(b.x, 0);
    std::mt19937 random(seed);
    for (at.z = 0; at.z < g.z; at.z++)
        for (at.y = 0; at.y < g.y; at.y++)
            for (at.x = 0; at.x < g.x; at.x++) {
                shared.reset(new char[bytes]);
                std::memset(shared.get(), 0xff, bytes);
                if (!run_block(seed, random)) return 1;
            }
    shared.reset();
    return 0;
}

template <class T> T exchange(T value, unsigned from) {
    std::memcpy(&slot[running->id], &value, sizeof value);
    wait(State::AT_WARP);
    T result;
    std::memcpy(&result, &slot[running->id / 32 * 32 + from % 32], sizeof result);
    wait(State::AT_WARP);
    return result;
}

}  // namespace on_cpu

#define threadIdx (dim3{on_cpu::running->id, 0, 0})
#define blockIdx on_cpu::at
#define blockDim on_cpu::block
#define gridDim on_cpu::grid
inline void __syncthreads() { on_cpu::wait(on_cpu::State::AT_BLOCK); }
inline void __syncwarp(unsigned = ~0u) { on_cpu::wait(on_cpu::State::AT_WARP); }
template <class T> T __shfl_xor_sync(unsigned, T value, int offset) { return on_cpu::exchange(value, (on_cpu::running->id % 32) ^ offset); }
inline unsigned __match_any_sync(unsigned, int value) {
    std::memcpy(&on_cpu::slot[on_cpu::running->id], &value, sizeof value);
    on_cpu::wait(on_cpu::State::AT_WARP);
    unsigned mask = 0;
    for (unsigned lane = 0; lane < 32; lane++) mask |= unsigned(std::memcmp(&on_cpu::slot[on_cpu::running->id / 32 * 32 + lane], &value, sizeof value) == 0) << lane;
    on_cpu::wait(on_cpu::State::AT_WARP);
    return mask;
}
inline unsigned __ballot_sync(unsigned, bool value) {
    on_cpu::slot[on_cpu::running->id] = value;
    on_cpu::wait(on_cpu::State::AT_WARP);
    unsigned mask = 0;
    for (unsigned lane = 0; lane < 32; lane++) mask |= unsigned(on_cpu::slot[on_cpu::running->id / 32 * 32 + lane] != 0) << lane;
    on_cpu::wait(on_cpu::State::AT_WARP);
    return mask;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned bits) { return unsigned(((uint64_t)high << 32 | low) >> bits % 32); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned from) {
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= unsigned(((uint64_t)y << 32 | x) >> 8 * (from >> 4 * i & 7) & 255) << 8 * i;
    return result;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int atomicAdd(int *to, int x) { return *to += x, *to - x; }
template <class T> T __shfl_sync(unsigned, T value, int from) { return on_cpu::exchange(value, from); }

#define ELM_DYNAMIC_SHARED(Type, name) Type *const name = (Type *)on_cpu::shared.get()
// A kernel, and what the tests call in its place.
#define ELM_KERNEL(name, Arguments, threads, blocks)                                                                                        \
    static void name(const Arguments &a);                                                                                                   \
    extern "C" int launch_##name(unsigned x, unsigned y, unsigned num_threads, size_t bytes, unsigned seed, const Arguments *a) {           \
        return on_cpu::launch({x, y, 1}, {num_threads, 1, 1}, bytes, seed, [a] { name(*a); });                                              \
    }                                                                                                                                       \
    static void name(const Arguments &a)
