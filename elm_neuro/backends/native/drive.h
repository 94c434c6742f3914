// What reaches the first layer: events summed and integrated over time, dense frames searched for events, and the table they read.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

constexpr int MAX_BLOCK = NUM_REGISTER / 2;  // vectors of one row that stay in registers

// Adds up the events of one row: sum[v] += value * table row, NV vectors of columns from `table` on.
template <class R, class I, int NV>
ELM_INLINE void gather(Vector<R> (&sum)[NV], i64 begin, i64 end, const I *channel, const R *value, const R *table, i64 row) {
    constexpr int W = Lanes<R>::W;
    for (i64 e = begin; e < end; e++) {
        const R *from = table + (i64)channel[e] * row;
        if (value) {
            const Vector<R> factor = all<R>(value[e]);
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) sum[v] += factor * load(from + v * W);
        } else {
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) sum[v] += load(from + v * W);
        }
    }
}

template <class R, class I, int NV>
ELM_INLINE void scatter(const Vector<R> (&sum)[NV], i64 begin, i64 end, const I *channel, const R *value, R *table, i64 row) {
    constexpr int W = Lanes<R>::W;
    for (i64 e = begin; e < end; e++) {
        R *to = table + (i64)channel[e] * row;
        const Vector<R> factor = all<R>(value ? value[e] : R(1));
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) store(to + v * W, load(to + v * W) + factor * sum[v]);
    }
}

template <class R, int NV> ELM_INLINE void load_block(Vector<R> (&x)[NV], const R *from, i64 count) {
    constexpr int W = Lanes<R>::W;
#pragma GCC unroll 16
    for (int v = 0; v < NV - 1; v++) x[v] = load(from + v * W);
    x[NV - 1] = count < NV * W ? load_part(from + (NV - 1) * W, int(count - (NV - 1) * W)) : load(from + (NV - 1) * W);
}
template <class R, int NV> ELM_INLINE void store_block(R *to, const Vector<R> (&x)[NV], i64 count) {
    constexpr int W = Lanes<R>::W;
#pragma GCC unroll 16
    for (int v = 0; v < NV - 1; v++) store(to + v * W, x[v]);
    if (count < NV * W)
        store_part(to + (NV - 1) * W, x[NV - 1], int(count - (NV - 1) * W));
    else
        store(to + (NV - 1) * W, x[NV - 1]);
}

// One sample, NV vectors of columns from column `c` on, forward in time.
template <class R, class I, int NV> static __attribute__((noinline)) void drive_columns(const ElmDrive &a, i64 b, i64 c) {
    constexpr int W = Lanes<R>::W;
    const i64 count = a.width - c < NV * W ? a.width - c : NV * W;
    Vector<R> f[NV] = {}, kappa[NV], bias[NV] = {};
    load_block<R, NV>(kappa, (const R *)a.kappa + c, count);
    if (a.bias) load_block<R, NV>(bias, (const R *)a.bias + c, count);
    if (a.initial) load_block<R, NV>(f, (const R *)a.initial + b * a.width + c, count);
    const R *dense = a.dense ? (const R *)a.dense + b * a.dense_batch + c : nullptr;
    R *out = (R *)a.out + b * a.num_steps * a.width + c;
    for (i64 t = 0; t < a.num_steps; t++, out += a.width) {
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) f[v] *= kappa[v];
        if (dense) {
            Vector<R> arrived[NV];
            load_block<R, NV>(arrived, dense + t * a.dense_time, count);
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) f[v] += arrived[v];
        }
        if (a.begin) {
            const i64 row = b * a.num_steps + t;
            gather<R, I, NV>(f, a.begin[row], a.end[row], (const I *)a.channel, (const R *)a.value, (const R *)a.table + c, a.table_row);
        }
        Vector<R> sum[NV];
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) sum[v] = f[v] + bias[v];
        store_block<R, NV>(out, sum, count);
    }
}

// The same columns of all samples, backward in time.
template <class R, class I, int NV> static __attribute__((noinline)) void drive_columns_backward(const ElmDrive &a, i64 c) {
    constexpr int W = Lanes<R>::W;
    const i64 count = a.width - c < NV * W ? a.width - c : NV * W;
    Vector<R> kappa[NV], bias[NV] = {};
    load_block<R, NV>(kappa, (const R *)a.kappa + c, count);
    for (i64 b = 0; b < a.batch; b++) {
        Vector<R> f[NV] = {}, own[NV] = {};
        const R *grad = (const R *)a.grad_out + b * a.dense_batch + c;
        R *grad_dense = a.grad_dense ? (R *)a.grad_dense + b * a.num_steps * a.width + c : nullptr;
        for (i64 t = a.num_steps - 1; t >= 0; t--) {
            Vector<R> g[NV];
            load_block<R, NV>(g, grad + t * a.dense_time, count);
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) {
                own[v] += g[v];
                f[v] = f[v] * kappa[v] + g[v];
            }
            if (grad_dense) store_block<R, NV>(grad_dense + t * a.width, f, count);
            if (a.grad_table) {
                const i64 row = b * a.num_steps + t;
                scatter<R, I, NV>(f, a.begin[row], a.end[row], (const I *)a.channel, (const R *)a.value, (R *)a.grad_table + c, a.table_row);
            }
        }
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) {
            bias[v] += own[v];
            f[v] *= kappa[v];
        }
        if (a.grad_initial) store_block<R, NV>((R *)a.grad_initial + b * a.width + c, f, count);
    }
    if (a.grad_bias) store_block<R, NV>((R *)a.grad_bias + c, bias, count);
}

template <class R, class I, int NV> ELM_INLINE void drive_block(const ElmDrive &a, i64 b, i64 c, bool backward) {
    if (backward)
        drive_columns_backward<R, I, NV>(a, c);
    else
        drive_columns<R, I, NV>(a, b, c);
}

// All columns from `c` to `end`, as few blocks as the registers allow, of nearly equal width.
template <class R, class I> static void drive_all(const ElmDrive &a, i64 b, i64 c, i64 end, bool backward) {
    constexpr int W = Lanes<R>::W;
    i64 vectors = (end - c + W - 1) / W;
    for (i64 blocks = (vectors + MAX_BLOCK - 1) / MAX_BLOCK; blocks > 0; blocks--) {
        const i64 wide = (vectors + blocks - 1) / blocks;
        switch (wide) {
#define ELM_CASE(NV) \
    case NV: drive_block<R, I, NV>(a, b, c, backward); break;
            ELM_CASE(1)
            ELM_CASE(2)
            ELM_CASE(3)
            ELM_CASE(4)
            ELM_CASE(5)
            ELM_CASE(6)
            ELM_CASE(7)
            ELM_CASE(8)
#if defined(__AVX512F__)
            ELM_CASE(9)
            ELM_CASE(10)
            ELM_CASE(11)
            ELM_CASE(12)
            ELM_CASE(13)
            ELM_CASE(14)
            ELM_CASE(15)
            ELM_CASE(16)
#endif
#undef ELM_CASE
        }
        c += wide * W;
        vectors -= wide;
    }
}

template <class R> static void drive_forward(const ElmDrive *a, ElmShare *share) {  // samples
    for (i64 b = share->first; b < share->last; b++) a->wide ? drive_all<R, int64_t>(*a, b, 0, a->width, false) : drive_all<R, int32_t>(*a, b, 0, a->width, false);
}

template <class R> static void drive_backward(const ElmDrive *a, ElmShare *share) {  // vectors of columns: no two threads add to one entry
    constexpr int W = Lanes<R>::W;
    const i64 first = share->first * W, last = share->last * W < a->width ? share->last * W : a->width;
    if (first >= last) return;
    a->wide ? drive_all<R, int64_t>(*a, 0, first, last, true) : drive_all<R, int32_t>(*a, 0, first, last, true);
}

// The lanes that are not 0, as bits; NaN counts as not 0, -0 as 0.
#if defined(__AVX512F__)
ELM_INLINE unsigned occupied(const float *p) { return _mm512_cmp_ps_mask(_mm512_loadu_ps(p), _mm512_setzero_ps(), _CMP_NEQ_UQ); }
ELM_INLINE unsigned occupied(const double *p) { return _mm512_cmp_pd_mask(_mm512_loadu_pd(p), _mm512_setzero_pd(), _CMP_NEQ_UQ); }
#elif defined(__AVX2__)
ELM_INLINE unsigned occupied(const float *p) { return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p), _mm256_setzero_ps(), _CMP_NEQ_UQ)); }
ELM_INLINE unsigned occupied(const double *p) { return (unsigned)_mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(p), _mm256_setzero_pd(), _CMP_NEQ_UQ)); }
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

// Part `index` of the samples to part `index` of the events; status 1 where they do not fit.
template <class R> static void compact(const ElmFrames *a, ElmShare *share) {
    constexpr int W = Lanes<R>::W, GROUP = 64 / Lanes<R>::W;
    const i64 base = share->index * a->room, limit = base + a->room;
    i64 at = base;
    R *value = (R *)a->value;
    for (i64 b = share->first; b < share->last; b++) {
        for (i64 t = 0; t < a->num_steps; t++) {
            const R *x = (const R *)a->frames + b * a->frames_batch + t * a->frames_time;
            a->begin[b * a->num_steps + t] = at;
            if (limit - at < a->num_input) {  // rows with more room than inputs need no further look
                i64 count = 0;
                for (i64 c = 0; c < a->num_input; c++) count += x[c] != R(0);
                if (count > limit - at) {
                    share->status = 1;
                    return;
                }
            }
            i64 c = 0;
            for (; c + 64 <= a->num_input; c += 64) {
                uint64_t bits = 0;
#pragma GCC unroll 64
                for (int k = 0; k < GROUP; k++) bits |= (uint64_t)occupied(x + c + k * W) << (k * W);
                for (; bits; bits &= bits - 1, at++) {
                    const i64 found = c + __builtin_ctzll(bits);
                    a->channel[at] = (int32_t)found;
                    value[at] = x[found];
                }
            }
            for (; c < a->num_input; c++)
                if (x[c] != R(0)) {
                    a->channel[at] = (int32_t)c;
                    value[at++] = x[c];
                }
            a->end[b * a->num_steps + t] = at;
        }
    }
}

// table[c][n, h] = weight[n, h, c] * w_s[n, c] and w_m[n, h] = weight[n, h, num_input:], squares of inputs by hidden units at a time.
template <class R> static void first_layer(const ElmFirstLayer *a, ElmShare *share) {
    constexpr i64 SIDE = 16;
    const i64 row = a->num_input + a->num_memory;
    for (i64 n = share->first; n < share->last; n++) {
        const R *weight = (const R *)a->weight + n * a->hidden * row, *w_s = (const R *)a->w_s + n * a->num_input;
        for (i64 c0 = 0; c0 < a->num_input; c0 += SIDE) {
            const i64 c1 = c0 + SIDE < a->num_input ? c0 + SIDE : a->num_input;
            for (i64 h0 = 0; h0 < a->hidden; h0 += SIDE) {
                const i64 h1 = h0 + SIDE < a->hidden ? h0 + SIDE : a->hidden;
                R square[SIDE][SIDE];
                for (i64 h = h0; h < h1; h++)
                    for (i64 c = c0; c < c1; c++) square[c - c0][h - h0] = weight[h * row + c];
                for (i64 c = c0; c < c1; c++) {
                    R *to = (R *)a->table + c * a->table_row + n * a->hidden;
                    for (i64 h = h0; h < h1; h++) to[h] = square[c - c0][h - h0] * w_s[c];
                }
            }
        }
        for (i64 h = 0; h < a->hidden; h++) copy_row((R *)a->w_m + (n * a->hidden + h) * a->num_memory, weight + h * row + a->num_input, a->num_memory);
    }
}

template <class R> static void first_layer_backward(const ElmFirstLayer *a, ElmShare *share) {
    constexpr i64 SIDE = 16;
    const i64 row = a->num_input + a->num_memory;
    for (i64 n = share->first; n < share->last; n++) {
        const R *weight = (const R *)a->weight + n * a->hidden * row, *w_s = (const R *)a->w_s + n * a->num_input;
        R *grad_weight = (R *)a->grad_weight + n * a->hidden * row, *grad_w_s = (R *)a->grad_w_s + n * a->num_input;
        for (i64 c0 = 0; c0 < a->num_input; c0 += SIDE) {
            const i64 c1 = c0 + SIDE < a->num_input ? c0 + SIDE : a->num_input;
            R sum[SIDE] = {};
            for (i64 h0 = 0; h0 < a->hidden; h0 += SIDE) {
                const i64 h1 = h0 + SIDE < a->hidden ? h0 + SIDE : a->hidden;
                R square[SIDE][SIDE];
                for (i64 c = c0; c < c1; c++) {
                    const R *from = (const R *)a->grad_table + c * a->table_row + n * a->hidden;
                    for (i64 h = h0; h < h1; h++) square[h - h0][c - c0] = from[h];
                }
                for (i64 h = h0; h < h1; h++) {
                    const R *w = weight + h * row;
                    R *to = grad_weight + h * row;
                    for (i64 c = c0; c < c1; c++) {
                        sum[c - c0] += square[h - h0][c - c0] * w[c];
                        to[c] = square[h - h0][c - c0] * w_s[c];
                    }
                }
            }
            for (i64 c = c0; c < c1; c++) grad_w_s[c] = sum[c - c0];
        }
        for (i64 h = 0; h < a->hidden; h++)
            copy_row(grad_weight + h * row + a->num_input, (const R *)a->grad_w_m + (n * a->hidden + h) * a->num_memory, a->num_memory);
    }
}

}  // namespace ELM_ISA
