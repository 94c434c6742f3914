// The neuron over a sequence, forward and backward: what arrives is integrated, then the memory
// m_t = kappa m_{t-1} + gain * 1.7159 tanh(2/3 MLP(z_t + W kappa m_{t-1})) advances, then the readout y_t = W_y m_t +
// b_y, and where there is a threshold the spikes s_t = [y_t > threshold]. docs/kernels.md derives the backward pass.
//
// A task is MB samples of one neuron: their rows share every weight that is loaded, and their sums stay in registers.
// Time is cut into chunks of ROWS_PER_CHUNK / MB steps, so that what a chunk works with stays in the first two caches:
// arrivals of the whole chunk are integrated first (each sample's columns stay in registers over all its steps), then
// the recurrence runs step by step, and in the backward pass the weights' gradients are added up once a chunk, as
// products with a long inner loop instead of one outer product a step.
//
// Longer than most files: forward and backward pass share the chunks and their rows, and are read side by side.
#pragma once
#include "filter.h"
#include "layout.h"
#include "products.h"
#include "surrogates.h"

namespace ELM_ISA {

template <class R> ELM_INLINE Arrivals<R> arrivals(const ElmScan &a, const Shape<R> &s, i64 neuron, R *grad_table) {
    const R *table = (const R *)a.table + neuron * a.num_input * s.fp;
    return {a.begin, a.end, a.channel, (const R *)a.value, table, grad_table, s.fp, a.wide != 0};
}

// Where a sample's row of an array (batch, time, neuron, ...) with these strides lies.
ELM_INLINE i64 row_of(i64 sample, i64 step, i64 neuron, i64 by_batch, i64 by_time, i64 by_neuron) {
    return sample * by_batch + step * by_time + neuron * by_neuron;
}

// A product whose terms come from behind a relu, if so without those that are 0 where that pays.
template <class R, int MB, class Start, class End>
ELM_INLINE void behind_relu(bool sparse, i64 num_term, int32_t *list, i64 used, const R *a, i64 row, const R *b,
                            i64 ldb, Start start, End end) {
    if (MB <= 2 && sparse)
        sparse_product<R, MB>(num_term, list, used, a, row, b, ldb, start, end);
    else
        product<R, MB>(num_term, used, a, row, 1, b, ldb, start, end);
}

// s = [y > threshold] of one row; NaN does not fire.
template <class R> ELM_INLINE void fire(R *spikes, const R *y, const R *threshold, i64 size) {
    constexpr int W = Lanes<R>::W;
    const Vector<R> zero = {}, one = all<R>(R(1));
    for (i64 j = 0; j < size; j += W) store_upto(spikes + j, load(y + j) > load(threshold + j) ? one : zero, size - j);
}

// Gradient of the readout for every row of a chunk: what comes for y, and what comes for the spikes times the
// surrogate's slope; the threshold's gradient is the negative sum of the latter. Rows past a sample's end are 0.
template <class R, int MB>
ELM_INLINE void readout_gradients(const ElmScan &a, const Shape<R> &s, const Neuron<R> &w, const Task &task,
                                  const Samples<MB> &samples, i64 start, i64 count, R *dy, const Gradients<R> &sum) {
    constexpr int W = Lanes<R>::W;
    for (i64 t = start; t < start + count; t++)
        for (int i = 0; i < MB; i++) {
            R *to = dy + ((t - start) * MB + i) * s.op;
            const i64 sample = task.sample + i, n = task.neuron;
            const bool inside = t < samples.length[i];
            if (inside && a.grad_y)
                copy_row(to, (const R *)a.grad_y + row_of(sample, t, n, a.grad_y_batch, a.grad_y_time, a.grad_y_neuron),
                         s.o);
            else
                std::memset(to, 0, s.op * sizeof(R));
            if (!inside || !a.grad_spikes) continue;
            const R *y = (const R *)a.y + row_of(sample, t, n, a.y_batch, a.y_time, a.y_neuron);
            const R *grad_spikes = (const R *)a.grad_spikes +
                                   row_of(sample, t, n, a.grad_spikes_batch, a.grad_spikes_time, a.grad_spikes_neuron);
            for (i64 j = 0; j < s.o; j += W) {
                const Vector<R> distance = load_upto(y + j, s.o - j) - load(w.threshold + j);
                const Vector<R> g =
                    load_upto(grad_spikes + j, s.o - j) * slope_of<R>(distance, a.surrogate, &a.slope);
                store(to + j, load(to + j) + g);
                store(sum.threshold + j, load(sum.threshold + j) - g);
            }
        }
}

// Steps `start` to `start + count` of all samples: what arrives, integrated and with the bias, to rows (step, sample).
template <class R, int MB>
ELM_INLINE void integrate_chunk(const ElmScan &a, const Shape<R> &s, const Neuron<R> &w, const Task &task,
                                const Samples<MB> &samples, i64 start, i64 count, R *f, R *z) {
    constexpr int W = Lanes<R>::W;
    const Arrivals<R> events = arrivals<R>(a, s, task.neuron, nullptr);
    for (int i = 0; i < MB; i++) {
        const i64 sample = task.sample + i;
        const i64 at = row_of(sample, start, task.neuron, a.dense_batch, a.dense_time, a.dense_neuron);
        Steps<R> steps = {};
        steps.row = sample * a.all_steps + a.first_step + start;
        steps.count = count;
        steps.arriving = samples.arriving(i, start, count);
        steps.kappa = a.kappa_b ? w.kappa_b : nullptr;
        steps.bias = w.first_bias;
        steps.state = f + i * s.fp;
        steps.width = s.first;
        steps.in = a.dense ? (const R *)a.dense + at : nullptr;
        steps.in_row = a.dense_time;
        steps.out = z + i * s.fp;
        steps.out_row = MB * s.fp;
        steps.out_width = s.fp;
        integrate(events, steps, 0, s.first, false);
        if (Lanes<R>::PAD > W)  // vectors beyond the last one that holds a column
            for (i64 t = 0; t < count; t++)
                for (i64 j = (s.first + W - 1) / W * W; j < s.fp; j += W)
                    store(z + (t * MB + i) * s.fp + j, Vector<R>{});
    }
}

// The transpose: from the gradient of the first layer's input, `flow`, to that of what arrived.
template <class R, int MB>
ELM_INLINE void integrate_chunk_backward(const ElmScan &a, const Shape<R> &s, const Neuron<R> &w, const Task &task,
                                         const Samples<MB> &samples, i64 start, i64 count, R *f, const R *flow,
                                         R *grad_table) {
    const Arrivals<R> events = arrivals<R>(a, s, task.neuron, grad_table);
    for (int i = 0; i < MB; i++) {
        const i64 sample = task.sample + i;
        const i64 at = row_of(sample, start, task.neuron, a.dense_batch, a.dense_time, a.dense_neuron);
        Steps<R> steps = {};
        steps.row = sample * a.all_steps + a.first_step + start;
        steps.count = count;
        steps.arriving = samples.arriving(i, start, count);
        steps.kappa = a.kappa_b ? w.kappa_b : nullptr;
        steps.state = f + i * s.fp;
        steps.width = s.fp;
        steps.in = flow + i * s.fp;
        steps.in_row = MB * s.fp;
        steps.out = a.grad_dense ? (R *)a.grad_dense + at : nullptr;
        steps.out_row = a.dense_time;
        steps.out_width = s.first;
        integrate(events, steps, 0, s.first, true);
    }
}

// Whether there was memory enough.
template <class R, int MB>
static __attribute__((noinline)) bool forward_task(const ElmScan &a, const Shape<R> &s, const Neuron<R> &w,
                                                   const Task &task) {
    constexpr int W = Lanes<R>::W;
    constexpr i64 CHUNK = ROWS_PER_CHUNK / MB;
    const bool silu = a.silu, save = a.saved, sparse = !silu, reads = a.y || a.spikes || a.y_last;
    const Samples<MB> samples(a, task);
    const i64 chunk = CHUNK < samples.longest ? CHUNK : samples.longest;
    const i64 room = (1 + chunk) * s.fp + (s.layers + 3) * s.hp + 3 * s.dp + s.op + 64 * (s.layers + 8);
    Arena arena((size_t)(MB * room) * sizeof(R));
    if (!arena.base) return false;
    R *decayed = arena.take<R>(MB * s.dp), *memory = arena.take<R>(MB * s.dp), *tanh_step = arena.take<R>(MB * s.dp);
    R *f = arena.take<R>(MB * s.fp), *z_chunk = arena.take<R>(MB * chunk * s.fp);
    R *post = arena.take<R>(MB * s.hp), *post_next = arena.take<R>(MB * s.hp);
    int32_t *active = arena.take<int32_t>(s.hp + 16);
    R *y = arena.take<R>(MB * s.op), *hidden[ELM_MAX_LAYERS];
    for (i64 l = 0; l < s.layers; l++)
        hidden[l] = save ? (R *)a.saved + s.saved_hidden(a, l, task) : arena.take<R>(MB * s.hp);
    for (int i = 0; i < MB; i++) {
        if (a.m_0) copy_row(memory + i * s.dp, (const R *)a.m_0 + samples.row[i] * s.d, s.d);
        if (a.f_0) copy_row(f + i * s.fp, (const R *)a.f_0 + samples.row[i] * s.first, s.first);
        for (i64 j = 0; j < s.dp; j += W)
            store(decayed + i * s.dp + j, load(memory + i * s.dp + j) * load(w.kappa + j));
        if (samples.length[i] == 0) copy_row((R *)a.m_last + samples.row[i] * s.d, memory + i * s.dp, s.d);
    }
    for (i64 start = 0; start < samples.longest; start += CHUNK) {
        const i64 count = samples.longest - start < CHUNK ? samples.longest - start : CHUNK;
        // The backward pass gets the memory of every step back from this one and the tanh: cheaper than to save it.
        if (save)
            std::memcpy((R *)a.saved + s.saved_memory(a, task) + start / CHUNK * MB * s.dp, memory,
                        MB * s.dp * sizeof(R));
        R *z = save && s.layers ? hidden[0] + start * MB * s.hp : z_chunk;
        integrate_chunk<R, MB>(a, s, w, task, samples, start, count, f, z);
        for (i64 t = start; t < start + count; t++, z += MB * s.fp) {
            R *th = save ? (R *)a.saved + s.saved_tanh(a, task) + t * MB * s.dp : tanh_step;
            // The last product ends in the memory of this step while its sums are still in registers.
            const auto propose = [&](int i, int v, Vector<R> x) ELM_LAMBDA {
                const Vector<R> proposal = tanh_of(x * all<R>(R(TANH_SLOPE)));
                const Vector<R> next = load(decayed + i * s.dp + v * W) + load(w.gain + v * W) * proposal;
                store(th + i * s.dp + v * W, proposal);
                store(memory + i * s.dp + v * W, next);
                // read for the last time in this step, unless this is the product that reads it
                if (s.layers) store(decayed + i * s.dp + v * W, next * load(w.kappa + v * W));
            };
            const auto start_z = [&](int i, int v) ELM_LAMBDA { return load(z + i * s.fp + v * W); };
            if (s.layers == 0) {
                product<R, MB>(s.d, s.d, decayed, s.dp, 1, w.recurrent, s.fp, start_z, propose);
            } else {
                // relu saves its output, silu its input: what the derivative is read from
                R *in = silu ? post : z;
                product<R, MB>(s.d, s.h, decayed, s.dp, 1, w.recurrent, s.fp, start_z,
                               [&](int i, int v, Vector<R> x) ELM_LAMBDA {
                                   if (silu) store(z + i * s.hp + v * W, x);
                                   store(in + i * s.hp + v * W, activated<R>(x, silu));
                               });
                for (i64 l = 0; l + 1 < s.layers; l++) {
                    R *z_l = hidden[l + 1] + (save ? t * MB * s.hp : 0);
                    R *next = !silu ? z_l : in == post ? post_next : post;
                    const R *bias = w.bias[l];
                    behind_relu<R, MB>(
                        sparse, s.h, active, s.h, in, s.hp, w.weight[l], s.hp,
                        [&](int, int v) ELM_LAMBDA { return load(bias + v * W); },
                        [&](int i, int v, Vector<R> x) ELM_LAMBDA {
                            if (silu) store(z_l + i * s.hp + v * W, x);
                            store(next + i * s.hp + v * W, activated<R>(x, silu));
                        });
                    in = next;
                }
                const R *bias = w.bias[s.layers - 1];
                behind_relu<R, MB>(
                    sparse, s.h, active, s.d, in, s.hp, w.weight[s.layers - 1], s.dp,
                    [&](int, int v) ELM_LAMBDA { return load(bias + v * W); }, propose);
            }
            R *read[MB];  // where a row of the readout goes: in its place at once where that has room for whole vectors
            for (int i = 0; i < MB; i++) {
                const i64 at = row_of(task.sample + i, t, task.neuron, a.y_batch, a.y_time, a.y_neuron);
                read[i] = a.y && s.o == s.op && t < samples.length[i] ? (R *)a.y + at : y + i * s.op;
            }
            if (reads)
                product<R, MB>(
                    s.d, s.o, memory, s.dp, 1, w.readout, s.op,
                    [&](int, int v) ELM_LAMBDA { return load(w.read_bias + v * W); },
                    [&](int i, int v, Vector<R> x) ELM_LAMBDA { store(read[i] + v * W, x); });
            for (int i = 0; i < MB; i++) {
                const R *m = memory + i * s.dp;
                for (i64 j = 0; !s.layers && j < s.dp; j += W)
                    store(decayed + i * s.dp + j, load(m + j) * load(w.kappa + j));
                const bool last = t == samples.length[i] - 1;
                if (last) copy_row((R *)a.m_last + samples.row[i] * s.d, m, s.d);
                if (last && a.y_last) copy_row((R *)a.y_last + samples.row[i] * s.o, read[i], s.o);
                if (!reads || t >= samples.length[i]) continue;
                const i64 at = row_of(task.sample + i, t, task.neuron, a.y_batch, a.y_time, a.y_neuron);
                if (a.y && s.o != s.op) copy_row((R *)a.y + at, read[i], s.o);
                if (a.spikes) fire((R *)a.spikes + at, read[i], w.threshold, s.o);
            }
        }
    }
    for (int i = 0; i < MB; i++) {
        if (a.f_last) copy_row((R *)a.f_last + samples.row[i] * s.first, f + i * s.fp, s.first);
        for (i64 t = samples.length[i]; reads && t < s.steps; t++) {
            const i64 at = row_of(task.sample + i, t, task.neuron, a.y_batch, a.y_time, a.y_neuron);
            if (a.y) std::memset((R *)a.y + at, 0, s.o * sizeof(R));
            if (a.spikes) std::memset((R *)a.spikes + at, 0, s.o * sizeof(R));
        }
    }
    return true;
}

// In the words of docs/kernels.md: g is the gradient of m_t, q that of the proposal before its tanh, dz[l] that of
// layer l before its nonlinearity, `carry` what m_{t-1} gets from the steps behind it.
template <class R, int MB>
static __attribute__((noinline)) bool backward_task(const ElmScan &a, const Shape<R> &s, const Neuron<R> &w,
                                                    const Task &task, const Gradients<R> &sum, R *grad_table) {
    constexpr int W = Lanes<R>::W;
    constexpr i64 CHUNK = ROWS_PER_CHUNK / MB;
    const bool silu = a.silu, sparse = !silu, reads = a.grad_y || a.grad_spikes;
    const Samples<MB> samples(a, task);
    const i64 rows = (CHUNK < samples.longest ? CHUNK : samples.longest) * MB;
    const i64 room = MB * (5 * s.dp + s.fp) + s.hp + 16 + rows * (2 * s.dp + s.op) + 2 * s.layers * rows * s.hp +
                     64 * (10 + 2 * s.layers);
    Arena arena((size_t)room * sizeof(R));
    if (!arena.base) return false;
    R *g = arena.take<R>(MB * s.dp), *carry = arena.take<R>(MB * s.dp);
    R *d_kappa = arena.take<R>(MB * s.dp), *d_gain = arena.take<R>(MB * s.dp), *f = arena.take<R>(MB * s.fp);
    R *dq = arena.take<R>(rows * s.dp), *before = arena.take<R>((rows + MB) * s.dp), *dy = arena.take<R>(rows * s.op);
    int32_t *active = arena.take<int32_t>(s.hp + 16);
    R *dz[ELM_MAX_LAYERS], *post[ELM_MAX_LAYERS];
    const R *hidden[ELM_MAX_LAYERS];
    for (i64 l = 0; l < s.layers; l++) {
        dz[l] = arena.take<R>(rows * s.hp);
        post[l] = silu ? arena.take<R>(rows * s.hp) : nullptr;
        hidden[l] = (const R *)a.saved + s.saved_hidden(a, l, task);
    }
    const R *tanhs = (const R *)a.saved + s.saved_tanh(a, task);
    const R *memory = (const R *)a.saved + s.saved_memory(a, task);
    if (a.grad_f_last)
        for (int i = 0; i < MB; i++)
            copy_row(f + i * s.fp, (const R *)a.grad_f_last + samples.row[i] * s.first, s.first);
    for (i64 start = (samples.longest - 1) / CHUNK * CHUNK; start >= 0 && samples.longest; start -= CHUNK) {
        const i64 count = samples.longest - start < CHUNK ? samples.longest - start : CHUNK;
        std::memcpy(before, memory + start / CHUNK * MB * s.dp, MB * s.dp * sizeof(R));
        for (i64 t = 0; t < count; t++)  // the memory before and after each step once more, from its tanh
            for (int i = 0; i < MB; i++)
                for (i64 j = 0; j < s.dp; j += W) {
                    const i64 o = (t * MB + i) * s.dp + j;
                    store(before + o + MB * s.dp, load(before + o) * load(w.kappa + j) +
                                                      load(w.gain + j) * load(tanhs + start * MB * s.dp + o));
                }
        if (reads) readout_gradients<R, MB>(a, s, w, task, samples, start, count, dy, sum);
        for (i64 t = start + count - 1; t >= start; t--) {
            const i64 at = (t - start) * MB;
            R *q = dq + at * s.dp;
            const R *gy = dy + at * s.op, *m = before + at * s.dp, *th = tanhs + t * MB * s.dp;
            if (t >= CHUNK) {  // what the next chunk reads: no processor expects it backward in time
                prefetch(tanhs + (t - CHUNK) * MB * s.dp, MB * s.dp * sizeof(R));
                for (i64 l = 0; l < s.layers; l++) prefetch(hidden[l] + (t - CHUNK) * MB * s.hp, MB * s.hp * sizeof(R));
            }
            for (int i = 0; i < MB; i++)
                if (a.grad_m_last && t == samples.length[i] - 1)
                    add_row(carry + i * s.dp, (const R *)a.grad_m_last + samples.row[i] * s.d, s.d);
            // g = carry + W_y^T dy, and from it in the same registers q = g * gain * 2/3 (1 - tanh^2)
            product<R, MB>(
                reads ? s.o : 0, s.d, gy, s.op, 1, w.readout, s.dp,
                [&](int i, int v) ELM_LAMBDA { return load(carry + i * s.dp + v * W); },
                [&](int i, int v, Vector<R> x) ELM_LAMBDA {
                    const i64 o = i * s.dp + v * W;
                    const Vector<R> tanh = load(th + o);
                    store(g + o, x);
                    store(d_gain + o, load(d_gain + o) + x * tanh);
                    store(q + o, x * load(w.gain + v * W) * all<R>(R(TANH_SLOPE)) * (all<R>(R(1)) - tanh * tanh));
                });
            // back through the layers: flow = W_l^T flow * activation'(z_l)
            const R *flow = q;
            i64 terms = s.d, row = s.dp;
            for (i64 l = s.layers - 1; l >= 0; l--) {
                R *to = dz[l] + at * s.hp, *h = silu ? post[l] + at * s.hp : nullptr;
                const R *z = hidden[l] + t * MB * s.hp;
                behind_relu<R, MB>(
                    sparse && flow != q, terms, active, s.h, flow, row, w.weight[l], s.hp,
                    [](int, int) ELM_LAMBDA { return Vector<R>{}; },
                    [&](int i, int v, Vector<R> x) ELM_LAMBDA {
                        const i64 o = i * s.hp + v * W;
                        const Vector<R> at_z = load(z + o), zero = {};
                        if (silu) {
                            const Vector<R> sig = sigmoid_of(at_z);
                            store(h + o, at_z * sig);
                            x = x * (sig * (R(1) + at_z * (R(1) - sig)));
                        } else {
                            x = at_z > zero ? x : zero;
                        }
                        store(to + o, x);
                    });
                flow = to;
                terms = s.h;
                row = s.hp;
            }
            // x = g + W^T flow is the gradient of kappa m_{t-1}: it gives kappa's and, times kappa, what is carried on
            behind_relu<R, MB>(
                sparse && s.layers, terms, active, s.d, flow, row, w.recurrent, s.dp,
                [&](int i, int v) ELM_LAMBDA { return load(g + i * s.dp + v * W); },
                [&](int i, int v, Vector<R> x) ELM_LAMBDA {
                    const i64 o = i * s.dp + v * W;
                    store(d_kappa + o, load(d_kappa + o) + x * load(m + o));
                    store(carry + o, x * load(w.kappa + v * W));
                });
        }
        // The weights' gradients of the whole chunk: long sums over its rows, each weight's stays in registers.
        const i64 num = count * MB;
        for (i64 l = s.layers - 1; l >= 0; l--) {
            const R *out = l + 1 == s.layers ? dq : dz[l + 1], *h = silu ? post[l] : hidden[l] + start * MB * s.hp;
            add_outer(num, out, s.outp(l), s.out(l), h, s.hp, s.h, sum.weight[l]);
            add_rows(num, out, s.outp(l), sum.bias[l]);
        }
        const R *flow = s.layers ? dz[0] : dq;
        add_outer(num, flow, s.fp, s.first, before, s.dp, s.d, sum.recurrent);
        add_rows(num, flow, s.fp, sum.first_bias);
        if (reads) {
            add_outer(num, dy, s.op, s.o, before + MB * s.dp, s.dp, s.d, sum.readout);
            add_rows(num, dy, s.op, sum.read_bias);
        }
        if (grad_table || a.grad_dense || a.grad_f_0)
            integrate_chunk_backward<R, MB>(a, s, w, task, samples, start, count, f, flow, grad_table);
    }
    for (int i = 0; i < MB; i++) {
        const R *last = a.grad_m_last ? (const R *)a.grad_m_last + samples.row[i] * s.d : nullptr;
        for (i64 j = 0; j < s.dp; j += W) {
            store(sum.kappa + j, load(sum.kappa + j) + load(d_kappa + i * s.dp + j));
            store(sum.gain + j, load(sum.gain + j) + load(d_gain + i * s.dp + j));
        }
        if (last && samples.length[i] == 0) add_row(carry + i * s.dp, last, s.d);
        if (a.grad_m_0) copy_row((R *)a.grad_m_0 + samples.row[i] * s.d, carry + i * s.dp, s.d);
        if (a.grad_f_0) copy_row((R *)a.grad_f_0 + samples.row[i] * s.first, f + i * s.fp, s.first);
        for (i64 t = samples.longest; a.grad_dense && t < s.steps; t++) {
            const i64 at = row_of(task.sample + i, t, task.neuron, a.dense_batch, a.dense_time, a.dense_neuron);
            std::memset((R *)a.grad_dense + at, 0, s.first * sizeof(R));
        }
    }
    return true;
}

template <class R> static void scan_forward(const ElmScan *a, ElmShare *share) {
    const Shape<R> s(*a);
    Arena arena(Neuron<R>::bytes(s));
    share->status = !arena.base;
    if (share->status) return;
    Neuron<R> w(s, arena, true);
    i64 current = -1;
    for (i64 index = share->first; index < share->last; index++) {
        const Task task = task_at(*a, index);
        if (task.neuron != current) w.read(*a, current = task.neuron);
        switch (task.count) {
#if defined(__AVX512F__)
            case 8: share->status |= !forward_task<R, 8>(*a, s, w, task); break;
#endif
            case 4: share->status |= !forward_task<R, 4>(*a, s, w, task); break;
            case 2: share->status |= !forward_task<R, 2>(*a, s, w, task); break;
            default: share->status |= !forward_task<R, 1>(*a, s, w, task);
        }
    }
}

// Whether another share begins with the neuron that this one begins in the middle of: then it adds up that neuron's
// table apart.
ELM_INLINE bool begins_inside(const ElmScan &a, const ElmShare &share) {
    return a.grad_table && share.first < share.last && task_at(a, share.first).sample;
}

template <class R> static void scan_backward(const ElmScan *a, ElmShare *share) {
    if (share->first == share->last) return;
    const Shape<R> s(*a);
    Arena arena(Neuron<R>::bytes(s));
    share->status = !arena.base;
    if (share->status) return;
    Neuron<R> w(s, arena, false);
    const i64 first = task_at(*a, share->first).neuron, count = task_at(*a, share->last - 1).neuron - first + 1;
    const i64 table = a->num_input * s.fp;
    const bool apart = begins_inside(*a, *share);
    void *sums = nullptr;
    const size_t bytes = (size_t)(count * s.gradients() + (apart ? table : 0)) * sizeof(R);
    share->status = posix_memalign(&sums, 64, bytes) != 0;
    if (share->status) return;
    std::memset(sums, 0, bytes);
    share->scratch = sums;
    R *own_table = (R *)sums + count * s.gradients();
    i64 current = -1;
    for (i64 index = share->first; index < share->last; index++) {
        const Task task = task_at(*a, index);
        if (task.neuron != current) w.read(*a, current = task.neuron);
        const Gradients<R> sum(s, (R *)sums + (task.neuron - first) * s.gradients());
        R *grad_table = !a->grad_table                  ? nullptr
                        : apart && task.neuron == first ? own_table
                                                        : (R *)a->grad_table + task.neuron * table;
        switch (task.count) {
#if defined(__AVX512F__)
            case 8: share->status |= !backward_task<R, 8>(*a, s, w, task, sum, grad_table); break;
#endif
            case 4: share->status |= !backward_task<R, 4>(*a, s, w, task, sum, grad_table); break;
            case 2: share->status |= !backward_task<R, 2>(*a, s, w, task, sum, grad_table); break;
            default: share->status |= !backward_task<R, 1>(*a, s, w, task, sum, grad_table);
        }
    }
}

// `sum`, (rows, columns) in rows of `sum_row`, or where it `lies_across` (columns, rows), to unpadded rows.
template <class R>
ELM_INLINE void add_to(void *to, i64 rows, i64 columns, const R *sum, i64 sum_row, R factor, bool fresh,
                       bool across = false) {
    const i64 by_row = across ? 1 : sum_row, by_column = across ? sum_row : 1;
    for (i64 i = 0; i < rows; i++)
        for (i64 j = 0; j < columns; j++) {
            R *entry = (R *)to + i * columns + j;
            *entry = (fresh ? R(0) : *entry) + sum[i * by_row + j * by_column] * factor;
        }
}

// That of the outer products of `rows` outputs and `columns` inputs.
template <class R> ELM_INLINE void add_weight(void *to, i64 rows, i64 columns, const R *sum, bool fresh) {
    const bool across = lies_across<R>(rows, columns);
    add_to(to, rows, columns, sum, padded<R>(across ? rows : columns), R(1), fresh, across);
}

// One neuron's sums of one thread, from padded rows to the caller's arrays; `fresh` where nothing is there yet.
template <class R>
ELM_INLINE void add_gradients(const ElmScan &a, const Shape<R> &s, i64 n, const Gradients<R> &sum, bool fresh) {
    if (a.grad_kappa) add_to((R *)a.grad_kappa + n * s.d, 1, s.d, sum.kappa, s.dp, R(1), fresh);
    if (a.grad_gain) add_to((R *)a.grad_gain + n * s.d, 1, s.d, sum.gain, s.dp, R(TANH_SCALE), fresh);
    add_weight((R *)a.grad_w_y + n * s.o * s.d, s.o, s.d, sum.readout, fresh);
    add_to((R *)a.grad_b_y + n * s.o, 1, s.o, sum.read_bias, s.op, R(1), fresh);
    if (a.grad_threshold) add_to((R *)a.grad_threshold + n * s.o, 1, s.o, sum.threshold, s.op, R(1), fresh);
    if (a.grad_bias) add_to((R *)a.grad_bias + n * s.first, 1, s.first, sum.first_bias, s.fp, R(1), fresh);
    // rows of `recurrent` met the memory before its decay
    const bool across = lies_across<R>(s.first, s.d);
    const i64 by_row = across ? 1 : s.dp, by_column = across ? s.fp : 1;
    for (i64 i = 0; i < s.first; i++) {
        R *to = (R *)a.grad_w_m + (n * s.first + i) * s.d;
        const R *kappa = (const R *)a.kappa + n * s.d, *from = sum.recurrent + i * by_row;
        for (i64 j = 0; j < s.d; j++) to[j] = (fresh ? R(0) : to[j]) + from[j * by_column] * kappa[j];
    }
    for (i64 l = 0; l < s.layers; l++) {
        const i64 out = s.out(l);
        add_weight((R *)a.grad_weight[l] + n * out * s.h, out, s.h, sum.weight[l], fresh);
        add_to((R *)a.grad_layer_bias[l] + n * out, 1, out, sum.bias[l], s.outp(l), R(1), fresh);
    }
}

// The threads' sums, added in the order of the threads, so that a result does not depend on who was first; returns 1
// where one of them lacked memory.
template <class R> static i64 scan_reduce(const ElmScan *a, const ElmShare *share, i64 num_share) {
    const Shape<R> s(*a);
    i64 lacking = 0;
    for (i64 k = 0; k < num_share; k++) lacking |= share[k].status;
    i64 done = -1;  // the last neuron that has been written
    for (i64 k = 0; k < num_share; k++) {
        if (!lacking && share[k].first < share[k].last) {
            R *sums = (R *)share[k].scratch;
            const i64 first = task_at(*a, share[k].first).neuron, last = task_at(*a, share[k].last - 1).neuron;
            const i64 table = a->num_input * s.fp;
            if (begins_inside(*a, share[k])) {
                const R *apart = sums + (last - first + 1) * s.gradients();
                R *to = (R *)a->grad_table + first * table;
                for (i64 j = 0; j < table; j++) to[j] += apart[j];
            }
            for (i64 n = first; n <= last; n++) {
                add_gradients(*a, s, n, Gradients<R>(s, sums + (n - first) * s.gradients()),
                              n > done && !a->accumulate);
                done = n > done ? n : done;
            }
        }
        free(share[k].scratch);
    }
    return lacking;
}

}  // namespace ELM_ISA
