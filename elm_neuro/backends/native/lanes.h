// Vectors of the widest registers that this file is compiled for, and what is done to one of them.
//
// Everything stands in the namespace ELM_ISA: the same source is compiled once per instruction set into one library,
// and no function of one compilation may stand in for that of another. For the same reason nothing here uses the C++
// library.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "api.h"

#define ELM_INLINE static inline __attribute__((always_inline))
#define ELM_INLINE_MEMBER inline __attribute__((always_inline))
#define ELM_LAMBDA __attribute__((always_inline))

namespace ELM_ISA {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, NUM_REGISTER = 32, TILE = 8;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32, NUM_REGISTER = 16, TILE = 4;
#else
constexpr int VECTOR_BYTES = 16, NUM_REGISTER = 16, TILE = 4;
#endif

typedef int64_t i64;

// Scaled tanh of the authors' code.
constexpr double TANH_SCALE = 1.7159, TANH_SLOPE = 2.0 / 3.0;

template <class R> struct Lanes {
    static constexpr int W = VECTOR_BYTES / sizeof(R);
    static constexpr int PAD = W > TILE ? W : TILE;  // rows are padded to whole vectors and to whole tiles
};
template <class R> struct VectorOf;
template <> struct VectorOf<float> {
    typedef float type __attribute__((vector_size(VECTOR_BYTES)));
};
template <> struct VectorOf<double> {
    typedef double type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class R> using Vector = typename VectorOf<R>::type;

template <class R> ELM_INLINE i64 padded(i64 size) {
    return (size + Lanes<R>::PAD - 1) / Lanes<R>::PAD * Lanes<R>::PAD;
}

template <class R> ELM_INLINE Vector<R> load(const R *p) {
    Vector<R> x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}
template <class R> ELM_INLINE void store(R *p, Vector<R> x) { __builtin_memcpy(p, &x, sizeof x); }
template <class R> ELM_INLINE Vector<R> all(R x) { return x - Vector<R>{}; }

// The first `count` lanes only, count < W; the other lanes load as 0 and are not stored.
#if defined(__AVX512F__)
ELM_INLINE Vector<float> load_part(const float *p, int count) {
    return (Vector<float>)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
}
ELM_INLINE Vector<double> load_part(const double *p, int count) {
    return (Vector<double>)_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), p);
}
ELM_INLINE void store_part(float *p, Vector<float> x, int count) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)x);
}
ELM_INLINE void store_part(double *p, Vector<double> x, int count) {
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << count) - 1), (__m512d)x);
}
#elif defined(__AVX2__)
ELM_INLINE __m256i first32(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
ELM_INLINE __m256i first64(int count) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
ELM_INLINE Vector<float> load_part(const float *p, int count) {
    return (Vector<float>)_mm256_maskload_ps(p, first32(count));
}
ELM_INLINE Vector<double> load_part(const double *p, int count) {
    return (Vector<double>)_mm256_maskload_pd(p, first64(count));
}
ELM_INLINE void store_part(float *p, Vector<float> x, int count) { _mm256_maskstore_ps(p, first32(count), (__m256)x); }
ELM_INLINE void store_part(double *p, Vector<double> x, int count) {
    _mm256_maskstore_pd(p, first64(count), (__m256d)x);
}
#else
template <class R> ELM_INLINE Vector<R> load_part(const R *p, int count) {
    R lanes[Lanes<R>::W] = {};
    for (int j = 0; j < count; j++) lanes[j] = p[j];
    return load(lanes);
}
template <class R> ELM_INLINE void store_part(R *p, Vector<R> x, int count) {
    for (int j = 0; j < count; j++) p[j] = x[j];
}
#endif

// The lanes before the end of a row of which `left` entries remain.
template <class R> ELM_INLINE Vector<R> load_upto(const R *p, i64 left) {
    return left < Lanes<R>::W ? load_part(p, int(left)) : load(p);
}
template <class R> ELM_INLINE void store_upto(R *p, Vector<R> x, i64 left) {
    if (left < Lanes<R>::W)
        store_part(p, x, int(left));
    else
        store(p, x);
}

// Lanes for which something holds, in as little room as the registers have for it.
#if defined(__AVX512F__)
template <class R> struct MaskOf;
template <> struct MaskOf<float> {
    typedef __mmask16 type;
};
template <> struct MaskOf<double> {
    typedef __mmask8 type;
};
template <class R> using Mask = typename MaskOf<R>::type;
ELM_INLINE Mask<float> above(Vector<float> x, Vector<float> y) { return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ); }
ELM_INLINE Mask<double> above(Vector<double> x, Vector<double> y) { return _mm512_cmp_pd_mask(x, y, _CMP_GT_OQ); }
ELM_INLINE Mask<float> differs(Vector<float> x, Vector<float> y) { return _mm512_cmp_ps_mask(x, y, _CMP_NEQ_UQ); }
ELM_INLINE Mask<double> differs(Vector<double> x, Vector<double> y) { return _mm512_cmp_pd_mask(x, y, _CMP_NEQ_UQ); }
template <class M> ELM_INLINE bool any(M mask) { return mask != 0; }
ELM_INLINE Vector<float> where(Mask<float> mask, Vector<float> yes, Vector<float> no) {
    return (Vector<float>)_mm512_mask_mov_ps(no, mask, yes);
}
ELM_INLINE Vector<double> where(Mask<double> mask, Vector<double> yes, Vector<double> no) {
    return (Vector<double>)_mm512_mask_mov_pd(no, mask, yes);
}
#else
template <class R> using Mask = decltype(Vector<R>{} > Vector<R>{});
template <class V> ELM_INLINE auto above(V x, V y) { return x > y; }
template <class V> ELM_INLINE auto differs(V x, V y) { return x != y; }
template <class M> ELM_INLINE bool any(M mask) {
    uint64_t words[sizeof mask / 8], all = 0;
    __builtin_memcpy(words, &mask, sizeof mask);
    for (uint64_t word : words) all |= word;
    return all != 0;
}
template <class M, class V> ELM_INLINE V where(M mask, V yes, V no) { return mask ? yes : no; }
#endif

// The lanes that are not 0, as bits; NaN counts as not 0, -0 as 0.
#if defined(__AVX512F__)
ELM_INLINE unsigned occupied(const float *p) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(p), _mm512_setzero_ps(), _CMP_NEQ_UQ);
}
ELM_INLINE unsigned occupied(const double *p) {
    return _mm512_cmp_pd_mask(_mm512_loadu_pd(p), _mm512_setzero_pd(), _CMP_NEQ_UQ);
}
#elif defined(__AVX2__)
ELM_INLINE unsigned occupied(const float *p) {
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p), _mm256_setzero_ps(), _CMP_NEQ_UQ));
}
ELM_INLINE unsigned occupied(const double *p) {
    return (unsigned)_mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(p), _mm256_setzero_pd(), _CMP_NEQ_UQ));
}
#else
template <class R> ELM_INLINE unsigned occupied(const R *p) {
    uint64_t words[VECTOR_BYTES / 8];
    std::memcpy(words, p, sizeof words);
    uint64_t any = 0;
    for (uint64_t word : words) any |= word;
    unsigned bits = 0;
    if (any)
        for (int j = 0; j < Lanes<R>::W; j++) bits |= (unsigned)(p[j] != R(0)) << j;
    return bits;
}
#endif

// Calls `each` with the index of every entry of an unpadded row that is not 0.
template <class R, class Each> ELM_INLINE void each_entry(const R *row, i64 n, Each each) {
    constexpr int W = Lanes<R>::W;
    for (i64 j = 0; j < n; j += W) {
        R lanes[W];
        store(lanes, load_upto(row + j, n - j));
        for (unsigned bits = occupied(lanes); bits; bits &= bits - 1) each(j + __builtin_ctz(bits));
    }
}

// The same of up to 64 entries of an unpadded row of which `left` remain.
template <class R> ELM_INLINE uint64_t occupied_word(const R *p, i64 left) {
    constexpr int W = Lanes<R>::W, GROUP = 64 / Lanes<R>::W;
    uint64_t bits = 0;
    if (left >= 64) {
#pragma GCC unroll 64
        for (int k = 0; k < GROUP; k++) bits |= (uint64_t)occupied(p + k * W) << (k * W);
    } else {
        i64 k = 0;
        for (; k + W <= left; k += W) bits |= (uint64_t)occupied(p + k) << k;
        if (k < left) {
            R lanes[W];
            store(lanes, load_part(p + k, int(left - k)));
            bits |= (uint64_t)occupied(lanes) << k;
        }
    }
    return bits;
}

// Lists the bits of a word, counted from `first`, in their order, and returns how many there are. Up to BEYOND further
// entries of the list are overwritten: without a branch for each bit, of which every other would be guessed wrong.
#if defined(__AVX512F__)
constexpr i64 BEYOND = 16;

// The same of the lanes of one vector, which are counted as `places` has it.
ELM_INLINE i64 list_lanes(__mmask16 mask, __m512i places, int32_t *to) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(mask, places));
    return __builtin_popcount(mask);
}
ELM_INLINE i64 list_lanes(__mmask8 mask, __m256i places, int32_t *to) {
    _mm256_storeu_si256((__m256i *)to, _mm256_maskz_compress_epi32(mask, places));
    return __builtin_popcount(mask);
}

ELM_INLINE i64 list_bits(uint64_t bits, int32_t first, int32_t *to) {
    __m512i places = _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,
                                                                                   12, 13, 14, 15));
    i64 count = 0;
    for (int k = 0; k < 64; k += 16) {
        count += list_lanes((__mmask16)(bits >> k), places, to + count);
        places = _mm512_add_epi32(places, _mm512_set1_epi32(16));
    }
    return count;
}
#else
constexpr i64 BEYOND = 4;  // by list_few_bits
ELM_INLINE i64 list_bits(uint64_t bits, int32_t first, int32_t *to) {
    i64 count = 0;
    for (; bits; bits &= bits - 1) to[count++] = first + __builtin_ctzll(bits);
    return count;
}
#endif

// The same where few are expected: the first four without a branch.
ELM_INLINE i64 list_few_bits(uint64_t bits, int32_t first, int32_t *to) {
    constexpr uint64_t last = (uint64_t)1 << 63;  // so that there is a bit to look for
    const i64 count = __builtin_popcountll(bits);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++, bits &= bits - 1) to[k] = first + __builtin_ctzll(bits | last);
    if (bits) list_bits(bits, first, to + 4);
    return count;
}

// Have these bytes brought near while something else is computed.
ELM_INLINE void prefetch(const void *from, i64 bytes) {
    for (i64 at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at, 0, 3);
}

// The same of what will be written: memory that was used before is read first otherwise, and the writing waits for it.
ELM_INLINE void prefetch_to_write(void *to, i64 bytes) {
    for (i64 at = 0; at < bytes; at += 64) __builtin_prefetch((char *)to + at, 1, 3);
}

// One row between an unpadded array and a padded one; the padding is neither read nor written.
template <class R> ELM_INLINE void copy_row(R *to, const R *from, i64 size) {
    constexpr int W = Lanes<R>::W;
    i64 j = 0;
    for (; j + W <= size; j += W) store(to + j, load(from + j));
    if (j < size) store_part(to + j, load_part(from + j, int(size - j)), int(size - j));
}

template <class R> ELM_INLINE void add_row(R *to, const R *from, i64 size) {
    for (i64 j = 0; j < size; j++) to[j] += from[j];
}

// x between two bounds; NaN stays NaN: of two operands of which one is it, minimum and maximum give the second.
#if defined(__AVX512F__)
ELM_INLINE Vector<float> clamped(Vector<float> x, float low, float high) {
    return (Vector<float>)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
}
#elif defined(__AVX2__)
ELM_INLINE Vector<float> clamped(Vector<float> x, float low, float high) {
    return (Vector<float>)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)x));
}
#else
ELM_INLINE Vector<float> clamped(Vector<float> x, float low, float high) {
    const Vector<float> l = all<float>(low), h = all<float>(high);
    x = x < l ? l : x;
    return x > h ? h : x;
}
#endif

ELM_INLINE Vector<double> tanh_of(Vector<double> x) {
    for (int j = 0; j < Lanes<double>::W; j++) x[j] = std::tanh(x[j]);
    return x;
}
ELM_INLINE Vector<double> exp_of(Vector<double> x) {
    for (int j = 0; j < Lanes<double>::W; j++) x[j] = std::exp(x[j]);
    return x;
}
ELM_INLINE Vector<double> sigmoid_of(Vector<double> x) {
    for (int j = 0; j < Lanes<double>::W; j++) x[j] = 1.0 / (1.0 + std::exp(-x[j]));
    return x;
}

// x P(x^2) / Q(x^2), fitted to tanh on [-9, 9] by reweighted least squares: 2e-8 in exact arithmetic, 4e-7 in float32.
// Beyond it is 1 to the last bit, as tanh in float32 is: what is left of 1 - tanh^2 would meet inputs of any size.
ELM_INLINE Vector<float> tanh_of(Vector<float> x) {
    x = clamped(x, -9.0f, 9.0f);
    const Vector<float> y = x * x;
    Vector<float> p = y * 1.33546756e-8f + 2.06090936e-5f, q = y * 7.77656396e-7f + 3.2856359e-4f;
    p = p * y + 3.49558867e-3f;
    q = q * y + 2.5876984e-2f;
    p = p * y + 1.33810267e-1f;
    q = q * y + 4.67143416e-1f;
    const Vector<float> one = all<float>(1.0f), ratio = x * (p * y + 1.0f) / (q * y + 1.0f);
    return x >= all<float>(9.0f) ? one : x <= all<float>(-9.0f) ? -one : clamped(ratio, -1.0f, 1.0f);
}

// 2^k times a polynomial fitted to exp on [-ln 2 / 2, ln 2 / 2]; ln 2 is subtracted in two parts of which the first has
// few digits.
ELM_INLINE Vector<float> exp_of(Vector<float> x) {
    typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));
    x = clamped(x, -87.0f, 88.0f);
    const Vector<float> shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer part lands in the low bits
    Integers k;
    __builtin_memcpy(&k, &shifted, sizeof k);
    const Vector<float> whole = shifted - 12582912.0f, r = (x - whole * 0.693145752f) - whole * 1.4286068e-6f;
    Vector<float> p = r * 1.38144661e-3f + 8.36878084e-3f;
    p = p * r + 4.16683927e-2f;
    p = p * r + 1.66665196e-1f;
    p = p * r + 4.9999994e-1f;
    p = p * (r * r) + r + 1.0f;
    k = (k - 0x4B400000 + 127) << 23;
    Vector<float> scale;
    __builtin_memcpy(&scale, &k, sizeof scale);
    return p * scale;
}
// 2^x of -125 <= x <= 0, in less than exp: what is subtracted is whole, and goes into the exponent as it is.
#if defined(__AVX512DQ__)
// Here the polynomial is fitted on [0, 1], and to take the whole number below x off, or into the exponent, is one
// instruction each.
ELM_INLINE Vector<float> power_of_two(Vector<float> x) {
    const Vector<float> r = (Vector<float>)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
    Vector<float> p = r * 1.8671307e-3f + 9.01702896e-3f;
    p = p * r + 5.57999141e-2f;
    p = p * r + 2.4016445e-1f;
    p = p * r + 6.93151312e-1f;
    p = p * r + 1.0f;
    return (Vector<float>)_mm512_scalef_ps((__m512)p, (__m512)x);  // NaN stays NaN
}
#else
ELM_INLINE Vector<float> power_of_two(Vector<float> x) {
    typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));
    const Vector<float> shifted = x + 12582912.0f, r = x - (shifted - 12582912.0f);
    Vector<float> p = r * 1.32647272e-3f + 9.67151264e-3f;
    p = p * r + 5.55073374e-2f;
    p = p * r + 2.40222421e-1f;
    p = p * r + 6.93146978e-1f;
    p = p * r + 1.0f;
    Integers bits, k;
    __builtin_memcpy(&bits, &p, sizeof bits), __builtin_memcpy(&k, &shifted, sizeof k);
    bits += k << 23;  // NaN stays NaN
    __builtin_memcpy(&p, &bits, sizeof p);
    return p;
}
#endif
ELM_INLINE Vector<float> sigmoid_of(Vector<float> x) { return 1.0f / (1.0f + exp_of(-x)); }

template <class R> ELM_INLINE Vector<R> activated(Vector<R> z, bool silu) {
    if (silu) return z * sigmoid_of(z);
    const Vector<R> zero = {};
    return z < zero ? zero : z;
}

// Memory for one thread, handed out in pieces that start on a cache line, zeroed where it is not only `room` to write
// in; `base` is null where there was none to be had.
struct Arena {
    char *base;
    size_t used, size;
    explicit Arena(size_t bytes) : base(nullptr), used(0), size(bytes + 64 * 64) {
        void *p = nullptr;
        if (!posix_memalign(&p, 64, size)) base = (char *)p;
    }
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;
    ~Arena() { free(base); }
    template <class R> R *room(i64 count) {
        R *p = (R *)(base + used);
        used += bytes_of<R>(count);
        if (used > size) abort();
        return p;
    }
    template <class R> R *take(i64 count) {
        R *p = room<R>(count);
        return (R *)std::memset(p, 0, bytes_of<R>(count));
    }

   private:
    template <class R> static size_t bytes_of(i64 count) { return ((size_t)count * sizeof(R) + 63) / 64 * 64; }
};

}  // namespace ELM_ISA
