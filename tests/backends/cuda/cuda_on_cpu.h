// Runs a kernel's own source on the CPU, so that tests need no GPU: the threads of a block are fibers, which run one at a time from barrier
// to barrier in an order that SEED decides, a warp ahead of the others as far as its own barriers let it. A kernel that depends on that order
// has a race, or lacks a barrier. The blocks of a cluster run side by side, each with its shared memory. Shared memory is as large as the launch says, to the byte, and starts as NaN.
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

// What is counted of numbers on their way into a block, in the 64 bits of a barrier of shared memory.
struct Arrivals {
    int16_t pending, turns;  // threads that are to say what they expect; how often all was there
    int32_t bytes;           // that are still expected
    void settle() {
        if (pending == 0 && bytes == 0) pending = 1, turns++;
    }
};

enum class State { READY, AT_BLOCK, AT_WARP, AT_CLUSTER, RECEIVING, DONE };
struct Fiber {
    Context context;
    std::unique_ptr<char[]> stack;
    State state;
    unsigned index, block, id;  // in the cluster; its block there; in the block
    const Arrivals *arrivals;   // that it waits for, as long as there have been as many turns
    int16_t turns;
};
constexpr size_t STACK = 1 << 17;

static std::vector<Fiber> fibers;
static Context home;
static Fiber *running;
static dim3 grid, block, at;
static std::vector<std::unique_ptr<char[]>> shared;  // of each block of the cluster
static size_t shared_bytes;
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

// false: a barrier or shuffle that not all threads of the block or warp reach, or numbers that nobody sends.
inline bool run_cluster(unsigned blocks, unsigned seed, std::mt19937 &random) {
    const unsigned n = block.x, all = blocks * n;
    const unsigned warps = (n + 31) / 32;
    std::vector<unsigned> order(all), of_warps(blocks * warps);
    for (unsigned i = 0; i < all; i++) {
        fibers[i].index = i;
        fibers[i].block = i / n;
        fibers[i].id = i % n;
        fibers[i].state = State::READY;
        fibers[i].context.start(fibers[i].stack.get(), STACK, entry);
        order[i] = i;
    }
    const auto first_of = [&](unsigned w) { return w / warps * n + w % warps * 32; };
    const auto last_of = [&](unsigned w) { return std::min(first_of(w) + 32, (w / warps + 1) * n); };
    for (unsigned w = 0; w < blocks * warps; w++) of_warps[w] = w;
    const bool ranked = seed == 3;
    if (ranked) std::reverse(of_warps.begin(), of_warps.end());
    if (ranked) std::stable_sort(of_warps.begin(), of_warps.end(), [&](unsigned v, unsigned w) { return v % warps < w % warps; });
    if (seed == 1) {
        std::reverse(of_warps.begin(), of_warps.end());
        for (unsigned w : of_warps) std::reverse(order.begin() + first_of(w), order.begin() + last_of(w));
    }
    for (;;) {
        bool ran = false;
        if (seed > 1 && !ranked) std::shuffle(of_warps.begin(), of_warps.end(), random);
        // A warp runs on while it waits for itself alone: it must not need that for the others to keep up.
        for (unsigned w : of_warps) {
            const unsigned first = first_of(w), last = last_of(w);
            bool again;
            do {
                if (seed > 1) std::shuffle(order.begin() + first, order.begin() + last, random);
                for (unsigned at = first; at < last; at++) {
                    Fiber &fiber = fibers[order[at]];
                    if (fiber.state == State::RECEIVING && fiber.arrivals->turns != fiber.turns) fiber.state = State::READY;
                    if (fiber.state != State::READY) continue;
                    running = &fiber;
                    Context::change(home, running->context);
                    ran = true;
                }
                again = release(first, last, State::AT_WARP);
            } while (again && (seed < 2 || ranked || random() % 4));
            if (ran && ranked) break;
        }
        bool released = release(0, all, State::AT_CLUSTER);
        for (unsigned b = 0; b < blocks; b++) released |= release(b * n, (b + 1) * n, State::AT_BLOCK);
        if (std::all_of(fibers.begin(), fibers.begin() + all, [](const Fiber &f) { return f.state == State::DONE; })) return true;
        if (!ran && !released) return false;
    }
}

// seed 0: threads in order, 1: backward, 3: a block's last warps wait as long as others can run, the first block's longest; else shuffled.
inline int launch(dim3 g, dim3 b, unsigned blocks, size_t bytes, unsigned seed, const std::function<void()> &f) {
    if (g.y % blocks) return 1;
    grid = g, block = b, body = &f, shared_bytes = bytes;
    while (fibers.size() < blocks * b.x) {
        fibers.emplace_back();
        fibers.back().stack.reset(new char[STACK]);
    }
    slot.assign(blocks * b.x, 0);
    shared.resize(blocks);
    std::mt19937 random(seed);
    for (at.z = 0; at.z < g.z; at.z++)
        for (at.y = 0; at.y < g.y; at.y += blocks)
            for (at.x = 0; at.x < g.x; at.x++) {
                for (auto &of_block : shared) {
                    of_block.reset(new char[bytes]);
                    std::memset(of_block.get(), 0xff, bytes);
                }
                if (!run_cluster(blocks, seed, random)) return 1;
            }
    shared.clear();
    return 0;
}

// The same place in another block of the cluster.
template <class T> T &in_block(T &place, unsigned rank) {
    const size_t offset = (char *)&place - shared[running->block].get();
    if (rank >= shared.size() || offset + sizeof(T) > shared_bytes) std::abort();
    return *(T *)(shared[rank].get() + offset);
}

// First threads of the warps of a block begin at its first thread.
inline unsigned in_warp(unsigned lane) { return running->index - running->id % 32 + lane; }

template <class T> T exchange(T value, unsigned from) {
    std::memcpy(&slot[running->index], &value, sizeof value);
    wait(State::AT_WARP);
    T result;
    std::memcpy(&result, &slot[in_warp(from % 32)], sizeof result);
    wait(State::AT_WARP);
    return result;
}

}  // namespace on_cpu

#define threadIdx (dim3{on_cpu::running->id, 0, 0})
#define blockIdx (dim3{on_cpu::at.x, on_cpu::at.y + on_cpu::running->block, on_cpu::at.z})
#define blockDim on_cpu::block
#define gridDim on_cpu::grid
inline void __syncthreads() { on_cpu::wait(on_cpu::State::AT_BLOCK); }
inline void __syncwarp(unsigned = ~0u) { on_cpu::wait(on_cpu::State::AT_WARP); }
template <class T> T __shfl_xor_sync(unsigned, T value, int offset) { return on_cpu::exchange(value, (on_cpu::running->id % 32) ^ offset); }
inline unsigned __match_any_sync(unsigned, int value) {
    std::memcpy(&on_cpu::slot[on_cpu::running->index], &value, sizeof value);
    on_cpu::wait(on_cpu::State::AT_WARP);
    unsigned mask = 0;
    for (unsigned lane = 0; lane < 32; lane++) mask |= unsigned(std::memcmp(&on_cpu::slot[on_cpu::in_warp(lane)], &value, sizeof value) == 0) << lane;
    on_cpu::wait(on_cpu::State::AT_WARP);
    return mask;
}
inline unsigned __ballot_sync(unsigned, bool value) {
    on_cpu::slot[on_cpu::running->index] = value;
    on_cpu::wait(on_cpu::State::AT_WARP);
    unsigned mask = 0;
    for (unsigned lane = 0; lane < 32; lane++) mask |= unsigned(on_cpu::slot[on_cpu::in_warp(lane)] != 0) << lane;
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

typedef on_cpu::Arrivals Arrivals;
inline void prepare(Arrivals &arrivals) { arrivals = {1, 0, 0}; }
inline void wait_for_cluster() { on_cpu::wait(on_cpu::State::AT_CLUSTER); }
template <class T> void send(T value, T &place, Arrivals &arrivals, int rank) {
    on_cpu::in_block(place, rank) = value;
    Arrivals &there = on_cpu::in_block(arrivals, rank);
    there.bytes -= sizeof(T);
    there.settle();
}
inline void receive(Arrivals &arrivals, int bytes, long long turn) {
    on_cpu::running->arrivals = &arrivals;
    on_cpu::running->turns = (int16_t)turn;  // so many before: it is over when there is one more
    if (on_cpu::running->id == 0) {
        arrivals.bytes += bytes;
        arrivals.pending--;
        arrivals.settle();
    }
    if (arrivals.turns == (int16_t)turn) on_cpu::wait(on_cpu::State::RECEIVING);
}

#define ELM_DYNAMIC_SHARED(Type, name) Type *const name = (Type *)on_cpu::shared[on_cpu::running->block].get()
// A kernel, and what the tests call in its place.
#define ELM_KERNEL_OF(name, Arguments, cluster)                                                                                             \
    static void name(const Arguments &a);                                                                                                   \
    extern "C" int launch_##name(unsigned x, unsigned y, unsigned num_threads, size_t bytes, unsigned seed, const Arguments *a) {           \
        return on_cpu::launch({x, y, 1}, {num_threads, 1, 1}, cluster, bytes, seed, [a] { name(*a); });                                     \
    }                                                                                                                                       \
    static void name(const Arguments &a)
#define ELM_KERNEL(name, Arguments, threads, blocks) ELM_KERNEL_OF(name, Arguments, 1)
#define ELM_CLUSTER_KERNEL(name, Arguments, threads) ELM_KERNEL_OF(name, Arguments, CLUSTER)
