// What arrives at each step, summed over events or given, and integrated over time; forward and backward.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

constexpr int MAX_BLOCK = NUM_REGISTER / 2;  // vectors of one row that stay in registers

// Events in rows, and the table whose rows they add up.
template <class R> struct Arrivals {
    const i64 *begin, *end;  // null without events
    const void *channel;
    const R *value, *table;
    R *grad_table;
    i64 table_row;
    bool wide;
};

// Some steps of one sample. Arrays without a stride of their own are padded to whole vectors.
template <class R> struct Steps {
    i64 row, count, arriving;  // the first step's row of events; steps; of them those in which anything arrives
    const R *kappa, *bias;     // null: nothing is kept from step to step, no bias
    R *state;     // integral before the first step, then after the last; backward: the gradient of the one after, then
                  // before
    i64 width;    // entries of a row of the arrays that follow
    const R *in;  // dense input, or the gradient of what came out; null: events only
    i64 in_row;
    R *out;  // what comes out, or the gradient of the dense input; null: not asked for
    i64 out_row, out_width;
};

// Adds up the events of one row: sum[v] += value * table row, NV vectors of columns from `table` on.
template <class R, class I, int NV>
ELM_INLINE void gather(Vector<R> (&sum)[NV], i64 begin, i64 end, const I *channel, const R *value, const R *table,
                       i64 row) {
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
ELM_INLINE void scatter(const Vector<R> (&sum)[NV], i64 begin, i64 end, const I *channel, const R *value, R *table,
                        i64 row) {
    constexpr int W = Lanes<R>::W;
    for (i64 e = begin; e < end; e++) {
        R *to = table + (i64)channel[e] * row;
        if (value) {
            const Vector<R> factor = all<R>(value[e]);
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) store(to + v * W, load(to + v * W) + factor * sum[v]);
        } else {
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) store(to + v * W, load(to + v * W) + sum[v]);
        }
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

// NV vectors of columns from column `c` on: f_t = kappa f_{t-1} + v_t, out_t = f_t + bias.
template <class R, class I, int NV>
static __attribute__((noinline)) void integrate_columns(const Arrivals<R> &a, const Steps<R> &s, i64 c) {
    constexpr int W = Lanes<R>::W;
    Vector<R> f[NV], kappa[NV] = {}, bias[NV] = {};
    load_block<R, NV>(f, s.state + c, NV * W);
    if (s.kappa) load_block<R, NV>(kappa, s.kappa + c, NV * W);
    if (s.bias) load_block<R, NV>(bias, s.bias + c, NV * W);
    // Columns do not see each other: f stays in registers over all steps, and a step costs its events alone.
    for (i64 t = 0; t < s.count; t++) {
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) f[v] = s.kappa ? f[v] * kappa[v] : Vector<R>{};
        if (t < s.arriving) {
            if (s.in) {
                Vector<R> arrived[NV];
                load_block<R, NV>(arrived, s.in + t * s.in_row + c, s.width - c);
#pragma GCC unroll 16
                for (int v = 0; v < NV; v++) f[v] += arrived[v];
            }
            if (a.begin)
                gather<R, I, NV>(f, a.begin[s.row + t], a.end[s.row + t], (const I *)a.channel, a.value, a.table + c,
                                 a.table_row);
        }
        Vector<R> sum[NV];
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) sum[v] = f[v] + bias[v];
        store_block<R, NV>(s.out + t * s.out_row + c, sum, s.out_width - c);
    }
    store_block<R, NV>(s.state + c, f, NV * W);
}

// The transpose, backward in time: `in` is the gradient of what came out.
template <class R, class I, int NV>
static __attribute__((noinline)) void integrate_columns_backward(const Arrivals<R> &a, const Steps<R> &s, i64 c) {
    constexpr int W = Lanes<R>::W;
    Vector<R> f[NV], kappa[NV] = {};
    load_block<R, NV>(f, s.state + c, NV * W);
    if (s.kappa) load_block<R, NV>(kappa, s.kappa + c, NV * W);
    // g_t = grad_t + kappa g_{t+1}; every event of step t adds g_t to its row of the table's gradient.
    for (i64 t = s.count - 1; t >= 0; t--) {
        Vector<R> g[NV];
        load_block<R, NV>(g, s.in + t * s.in_row + c, s.width - c);
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) f[v] += g[v];
        if (s.out) store_block<R, NV>(s.out + t * s.out_row + c, f, s.out_width - c);
        if (a.grad_table && t < s.arriving)
            scatter<R, I, NV>(f, a.begin[s.row + t], a.end[s.row + t], (const I *)a.channel, a.value, a.grad_table + c,
                              a.table_row);
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) f[v] = s.kappa ? f[v] * kappa[v] : Vector<R>{};
    }
    store_block<R, NV>(s.state + c, f, NV * W);
}

// Runs `columns<NV>(c)` for all columns from `c` to `end`, in as few blocks of NV vectors as the registers allow, of
// nearly equal width.
template <class R, class Run> static void in_blocks(const Run &run, i64 c, i64 end) {
    constexpr int W = Lanes<R>::W;
    i64 vectors = (end - c + W - 1) / W;
    for (i64 blocks = (vectors + MAX_BLOCK - 1) / MAX_BLOCK; blocks > 0; blocks--) {
        const i64 wide = (vectors + blocks - 1) / blocks;
        switch (wide) {
#define ELM_CASE(NV) \
    case NV: run.template columns<NV>(c); break;
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

template <class R, class I> struct Integration {
    const Arrivals<R> &a;
    const Steps<R> &s;
    bool backward;
    template <int NV> ELM_INLINE_MEMBER void columns(i64 c) const {
        if (backward)
            integrate_columns_backward<R, I, NV>(a, s, c);
        else
            integrate_columns<R, I, NV>(a, s, c);
    }
};

template <class R> ELM_INLINE void integrate(const Arrivals<R> &a, const Steps<R> &s, i64 c, i64 end, bool backward) {
    if (a.wide)
        in_blocks<R>(Integration<R, int64_t>{a, s, backward}, c, end);
    else
        in_blocks<R>(Integration<R, int32_t>{a, s, backward}, c, end);
}

// One sample of the branch traces; `state` and `kappa` padded.
template <class R> ELM_INLINE Arrivals<R> arrivals(const ElmFilter &a) {
    return {a.begin,           a.end,       a.channel,  (const R *)a.value, (const R *)a.table,
            (R *)a.grad_table, a.table_row, a.wide != 0};
}

template <class R> static void filter_forward(const ElmFilter *a, ElmShare *share) {  // samples
    Arena arena((size_t)2 * padded<R>(a->width) * sizeof(R));
    share->status = !arena.base;
    if (share->status) return;
    R *kappa = arena.take<R>(padded<R>(a->width)), *state = arena.take<R>(padded<R>(a->width));
    copy_row(kappa, (const R *)a->kappa, a->width);
    for (i64 b = share->first; b < share->last; b++) {
        if (a->initial)
            copy_row(state, (const R *)a->initial + b * a->width, a->width);
        else
            std::memset(state, 0, padded<R>(a->width) * sizeof(R));
        const R *dense = a->dense ? (const R *)a->dense + b * a->dense_batch : nullptr;
        R *out = (R *)a->out + b * a->num_steps * a->width;
        const Steps<R> steps = {b * a->num_steps, a->num_steps, a->num_steps,  kappa, nullptr,  state,
                                a->width,         dense,        a->dense_time, out,   a->width, a->width};
        integrate(arrivals<R>(*a), steps, 0, a->width, false);
    }
}

template <class R>
static void filter_backward(const ElmFilter *a,
                            ElmShare *share) {  // vectors of columns: no two threads add to one entry
    constexpr int W = Lanes<R>::W;
    const i64 first = share->first * W, last = share->last * W < a->width ? share->last * W : a->width;
    if (first >= last) return;
    Arena arena((size_t)2 * padded<R>(a->width) * sizeof(R));
    share->status = !arena.base;
    if (share->status) return;
    R *kappa = arena.take<R>(padded<R>(a->width)), *state = arena.take<R>(padded<R>(a->width));
    copy_row(kappa, (const R *)a->kappa, a->width);
    for (i64 b = 0; b < a->batch; b++) {
        std::memset(state, 0, padded<R>(a->width) * sizeof(R));
        const R *grad = (const R *)a->grad_out + b * a->dense_batch;
        R *out = a->grad_dense ? (R *)a->grad_dense + b * a->num_steps * a->width : nullptr;
        const Steps<R> steps = {b * a->num_steps, a->num_steps, a->num_steps,  kappa, nullptr,  state,
                                a->width,         grad,         a->dense_time, out,   a->width, a->width};
        integrate(arrivals<R>(*a), steps, first, last, true);
        if (a->grad_initial) copy_row((R *)a->grad_initial + b * a->width + first, state + first, last - first);
    }
}

}  // namespace ELM_ISA
