// Independent multiply-adds on the widest registers that this file is compiled for: what no kernel can be faster than.
#include <cstdint>

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
typedef float Vector __attribute__((vector_size(BYTES)));
// Twelve chains: more than the steps that a multiply-add takes times the units that do one, and fewer than registers.

// Runs `rounds` times CHAINS multiply-adds; returns how many numbers each of them works on. `sink` keeps the results.
// Each chain is a variable of its own: an array would be kept in memory.
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define START(c) Vector chain##c = x + float(c);
#define STEP(c) chain##c = chain##c * x + x; asm volatile("" : "+x"(chain##c));  // not left out, nor joined
#define TOTAL(c) total += chain##c;

extern "C" int fma_rounds(int64_t rounds, float *sink) {
    Vector x, total = {};
    for (int i = 0; i < BYTES / 4; ++i) x[i] = sink[0];
    EACH(START)
    for (int64_t i = 0; i < rounds; ++i) { EACH(STEP) }
    EACH(TOTAL)
    for (int i = 0; i < BYTES / 4; ++i) sink[0] += total[i] * 1e-30f;
    return BYTES / 4;
}
