// Matrix products of a few rows, accumulated in registers.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

// Half a register, for a row's last columns where no more are used: the same sums at half the cost where the processor
// cuts a wide multiply-add in two, and at none where it does not.
template <class R> struct HalfOf;
template <> struct HalfOf<float> {
    typedef float type __attribute__((vector_size(VECTOR_BYTES / 2)));
};
template <> struct HalfOf<double> {
    typedef double type __attribute__((vector_size(VECTOR_BYTES / 2)));
};
template <class R> using Half = typename HalfOf<R>::type;

template <class R> ELM_INLINE Half<R> low(Vector<R> x) {
    Half<R> half;
    __builtin_memcpy(&half, &x, sizeof half);
    return half;
}

// out[m][v] = start(m, v) + sum_k a[m * row + k * step] * b[k * ldb + v], for MB rows and NV vectors of columns from
// vector v0, and where HALF is 1 the lower half of one more. Every loop over accumulators is unrolled by hand of the
// pragma: gcc would keep them on the stack otherwise.
template <class R, int MB, int NV, int HALF, class Term, class Start, class End>
ELM_INLINE void tile(i64 num_term, Term term, const R *a, i64 row, i64 step, const R *b, i64 ldb, int v0, Start start,
                     End end) {
    constexpr int W = Lanes<R>::W, ROOM = NV + HALF;
    Vector<R> sum[MB][ROOM], out[MB][ROOM];
    Half<R> half[MB];
#pragma GCC unroll 16
    for (int m = 0; m < MB; m++) {
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) sum[m][v] = start(m, v0 + v);
        if (HALF) half[m] = low<R>(start(m, v0 + NV));
    }
    b += v0 * W;
    // One term at a time for all MB rows: a row of `b` is loaded once and meets MB factors, so that MB * NV products
    // follow NV + MB loads; the sums, independent of one another, hide the latency of the multiply-add.
    for (i64 i = 0; i < num_term; i++) {
        const i64 k = term(i);
        Vector<R> columns[ROOM];
        Half<R> last = {};
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) columns[v] = load(b + k * ldb + v * W);
        if (HALF) __builtin_memcpy(&last, b + k * ldb + NV * W, sizeof last);
#pragma GCC unroll 16
        for (int m = 0; m < MB; m++) {
            const Vector<R> factor = all<R>(a[m * row + k * step]);
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) sum[m][v] += factor * columns[v];
            if (HALF) half[m] += low<R>(factor) * last;
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < MB; m++) {
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) out[m][v] = sum[m][v];
        if (HALF) {
            // The upper half is padding, 0 as it was in start(m, v0 + NV): to take it from there would keep MB more
            // registers occupied through the loop, and two of the sums would lie on the stack.
            out[m][NV] = Vector<R>{};
            __builtin_memcpy(&out[m][NV], &half[m], sizeof half[m]);
        }
    }
    // `end` may be long (tanh, a store under a condition): it stays a loop, else its copies would push the sums out of
    // the registers and the code out of the instruction cache.
#pragma GCC unroll 1
    for (int m = 0; m < MB; m++) {
#pragma GCC unroll 1
        for (int v = 0; v < ROOM; v++) end(m, v0 + v, out[m][v]);
    }
}

// The columns of a padded row of which the first `used` matter, of the terms term(0), term(1), ...; `step` is 1 where a
// row of `a` holds the terms. What is beyond them is 0 in `b`.
template <class R, int MB, class Term, class Start, class End>
ELM_INLINE void product_of(i64 num_term, Term term, i64 used, const R *a, i64 row, i64 step, const R *b, i64 ldb,
                           Start start, End end) {
    constexpr int W = Lanes<R>::W;
    constexpr int WIDE = NUM_REGISTER == 32 ? (MB >= 7   ? 3
                                               : MB >= 5 ? 4
                                               : MB >= 4 ? 6
                                               : MB >= 2 ? 8
                                                         : 12)
                                            : (MB >= 4   ? 3
                                               : MB >= 2 ? 5
                                                         : 10);
    // as many columns as there are registers for MB rows of sums, one row of `b` and a factor
    // Fewer rows are bound by loads, and so is half a vector by itself: it comes with whole ones or as a whole one.
    constexpr bool HALVES = NUM_REGISTER == 32 && MB == 8;
    const int whole = int(padded<R>(used) / W);
    const bool half = HALVES && used % W && used % W <= W / 2 && (whole - 1) % WIDE;
    const int num_vector = whole - half;
    int v = 0;
    for (; v + WIDE <= num_vector; v += WIDE) tile<R, MB, WIDE, 0>(num_term, term, a, row, step, b, ldb, v, start, end);
    if (HALVES && half) {
        if (num_vector - v == 2) return tile<R, MB, 2, HALVES>(num_term, term, a, row, step, b, ldb, v, start, end);
        return tile<R, MB, 1, HALVES>(num_term, term, a, row, step, b, ldb, v, start, end);
    }
    if (WIDE == 4 && num_vector - v == 3)
        return tile<R, MB, 3, 0>(num_term, term, a, row, step, b, ldb, v, start, end);
    for (; v + 2 <= num_vector; v += 2) tile<R, MB, 2, 0>(num_term, term, a, row, step, b, ldb, v, start, end);
    if (v < num_vector) tile<R, MB, 1, 0>(num_term, term, a, row, step, b, ldb, v, start, end);
}

template <class R, int MB, class Start, class End>
ELM_INLINE void product(i64 num_term, i64 used, const R *a, i64 row, i64 step, const R *b, i64 ldb, Start start,
                        End end) {
    product_of<R, MB>(num_term, [](i64 i) ELM_LAMBDA { return i; }, used, a, row, step, b, ldb, start, end);
}

// The same without the terms that are 0 in every row, as half of those behind a relu are: worth it for one or two rows,
// where the time is that of reading `b`. `list` has room for num_term and a vector more. What is not finite in a row of
// `b` that is left out, is not noticed.
template <class R, int MB, class Start, class End>
ELM_INLINE void sparse_product(i64 num_term, int32_t *list, i64 used, const R *a, i64 row, const R *b, i64 ldb,
                               Start start, End end) {
    // The list first: a branch a term inside the product would be mispredicted half of the time.
    i64 count = 0;
    for (i64 k = 0; k < num_term; k += Lanes<R>::W) {
        unsigned bits = 0;
        for (int m = 0; m < MB; m++) bits |= occupied(a + m * row + k);
#if defined(__AVX512F__)
        if (sizeof(R) == 4) {
            const __m512i lanes = _mm512_add_epi32(
                _mm512_set1_epi32((int)k), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
            _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32((__mmask16)bits, lanes));
            count += __builtin_popcount(bits);
            continue;
        }
#endif
        for (; bits; bits &= bits - 1) list[count++] = (int32_t)k + __builtin_ctz(bits);
    }
    product_of<R, MB>(count, [&](i64 i) ELM_LAMBDA { return (i64)list[i]; }, used, a, row, 1, b, ldb, start, end);
}

// Rows of c that a sum of outer products holds in registers at a time, of `num_out`: what fills the last tile best, and
// of equals the fewest. Every row of a tile costs its multiply-adds, and the tile one more to read b.
template <class R> ELM_INLINE i64 height_for(i64 num_out) {
    i64 best = TILE;
    if (NUM_REGISTER == 32)
        for (i64 height = TILE - 1; height >= 5; height--) {
            const i64 tiles = (num_out + height - 1) / height, best_tiles = (num_out + best - 1) / best;
            if (tiles * height <= padded<R>(num_out) && tiles * (height + 1) <= best_tiles * (best + 1)) best = height;
        }
    return best;
}

template <class R> ELM_INLINE i64 cost_of_outer(i64 num_out, i64 used) {
    const i64 height = height_for<R>(num_out);
    return (num_out + height - 1) / height * (height + 1) * (padded<R>(used) / Lanes<R>::W);
}

// Whether the sum of outer products of rows of these widths lies transposed: the narrower one pads the vectors less.
template <class R> ELM_INLINE bool lies_across(i64 num_a, i64 num_b) {
    return cost_of_outer<R>(num_b, num_a) < cost_of_outer<R>(num_a, num_b);
}

template <class R, int HEIGHT>
static __attribute__((noinline)) void add_outer_of(i64 num_row, const R *a, i64 lda, i64 num_out, const R *b, i64 ldb,
                                                   i64 used, R *c) {
    constexpr int W = Lanes<R>::W;
    for (i64 out = 0; out < num_out; out += HEIGHT) {
        R *to = c + out * ldb;
        product<R, HEIGHT>(
            num_row, used, a + out, 1, lda, b, ldb,
            [&](int m, int v) ELM_LAMBDA { return load(to + m * ldb + v * W); },
            [&](int m, int v, Vector<R> x) ELM_LAMBDA { store(to + m * ldb + v * W, x); });
    }
}

template <class R>
static void add_outer_rows(i64 num_row, const R *a, i64 lda, i64 num_out, const R *b, i64 ldb, i64 used, R *c) {
    switch (height_for<R>(num_out)) {
#if defined(__AVX512F__)
        case 5: return add_outer_of<R, 5>(num_row, a, lda, num_out, b, ldb, used, c);
        case 6: return add_outer_of<R, 6>(num_row, a, lda, num_out, b, ldb, used, c);
        case 7: return add_outer_of<R, 7>(num_row, a, lda, num_out, b, ldb, used, c);
#endif
        default: return add_outer_of<R, TILE>(num_row, a, lda, num_out, b, ldb, used, c);
    }
}

// c += a^T b, or b^T a where that `lies_across`: the sum over `num_row` rows of their outer products; a (num_row, lda)
// and b (num_row, ldb), of which num_a and num_b columns matter, and c are padded: rows of c up to the next whole tile
// are written. A tile of c stays in registers over all rows of a and b, which are read from the cache once for each.
template <class R>
static void add_outer(i64 num_row, const R *a, i64 lda, i64 num_a, const R *b, i64 ldb, i64 num_b, R *c) {
    if (lies_across<R>(num_a, num_b)) return add_outer_rows(num_row, b, ldb, num_b, a, lda, num_a, c);
    add_outer_rows(num_row, a, lda, num_a, b, ldb, num_b, c);
}

// sum += the sum of all rows; four vectors at a time, whose additions do not wait for one another.
template <class R> static void add_rows(i64 num_row, const R *a, i64 lda, R *sum) {
    constexpr int W = Lanes<R>::W;
    i64 j = 0;
    for (; j + 4 * W <= lda; j += 4 * W) {
        Vector<R> total[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) total[v] = load(sum + j + v * W);
        for (i64 k = 0; k < num_row; k++) {
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) total[v] += load(a + k * lda + j + v * W);
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) store(sum + j + v * W, total[v]);
    }
    for (; j < lda; j += W) {
        Vector<R> even = load(sum + j), odd = {};
        for (i64 k = 0; k + 1 < num_row; k += 2) {
            even += load(a + k * lda + j);
            odd += load(a + (k + 1) * lda + j);
        }
        if (num_row % 2) even += load(a + (num_row - 1) * lda + j);
        store(sum + j, even + odd);
    }
}

}  // namespace ELM_ISA
