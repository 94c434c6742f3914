// The neuron over a sequence, forward and backward, a few samples at a time and some steps at a time: what arrives is integrated, then the
// memory m = kappa m + gain * 1.7159 tanh(2/3 MLP(z_t + W kappa m)) advances, then the readout y = W_y m + b_y.
#pragma once
#include "drive.h"
#include "layout.h"
#include "products.h"

namespace ELM_ISA {

template <class R> ELM_INLINE Arrivals<R> arrivals(const ElmScan &a, const Shape<R> &s, i64 neuron, R *grad_table) {
    return {a.begin, a.end, a.channel, (const R *)a.value, (const R *)a.table + neuron * a.num_input * s.fp, grad_table, s.fp, a.wide != 0};
}

// A product whose terms come from behind a relu, if so without those that are 0 where that pays.
template <class R, int MB, class Start, class End>
ELM_INLINE void behind_relu(bool sparse, i64 num_term, int32_t *list, int num_vector, const R *a, i64 row, const R *b, i64 ldb, Start start, End end) {
    if (MB <= 2 && sparse)
        sparse_product<R, MB>(num_term, list, num_vector, a, row, b, ldb, start, end);
    else
        product<R, MB>(num_term, num_vector, a, row, 1, b, ldb, start, end);
}

// Whether there was memory enough.
template <class R, int MB> static __attribute__((noinline)) bool forward_task(const ElmScan &a, const Shape<R> &s, const Neuron<R> &w, const Task &task) {
    constexpr int W = Lanes<R>::W;
    constexpr i64 CHUNK = ROWS_PER_CHUNK / MB;
    const bool silu = a.silu, keep = a.saved;
    const Samples<MB> samples(a, task);
    const i64 chunk = CHUNK < samples.longest ? CHUNK : samples.longest;
    Arena arena((size_t)MB * ((1 + chunk) * s.fp + (s.layers + 3) * s.hp + 3 * s.dp + s.op + 64 * (s.layers + 8)) * sizeof(R));
    if (!arena.base) return false;
    R *decayed = arena.take<R>(MB * s.dp), *memory = arena.take<R>(MB * s.dp), *tanh_step = arena.take<R>(MB * s.dp), *f = arena.take<R>(MB * s.fp);
    R *z_chunk = arena.take<R>(MB * chunk * s.fp), *post = arena.take<R>(MB * s.hp), *post_next = arena.take<R>(MB * s.hp);
    int32_t *active = arena.take<int32_t>(s.hp + 16);
    const bool sparse = !silu;
    R *y = arena.take<R>(MB * s.op), *hidden[ELM_MAX_LAYERS];
    for (i64 l = 0; l < s.layers; l++) hidden[l] = keep ? (R *)a.saved + s.saved_hidden(a, l, task) : arena.take<R>(MB * s.hp);
    for (int i = 0; i < MB; i++) {
        if (a.m_0) copy_row(memory + i * s.dp, (const R *)a.m_0 + samples.row[i] * s.d, s.d);
        if (a.initial) copy_row(f + i * s.fp, (const R *)a.initial + samples.row[i] * s.first, s.first);
        for (i64 j = 0; j < s.dp; j += W) store(decayed + i * s.dp + j, load(memory + i * s.dp + j) * load(w.kappa + j));
        if (samples.length[i] == 0) copy_row((R *)a.m_last + samples.row[i] * s.d, memory + i * s.dp, s.d);
    }
    const Arrivals<R> events = arrivals<R>(a, s, task.neuron, nullptr);
    for (i64 start = 0; start < samples.longest; start += CHUNK) {
        const i64 count = samples.longest - start < CHUNK ? samples.longest - start : CHUNK;
        if (keep) std::memcpy((R *)a.saved + s.saved_memory(a, task) + start / CHUNK * MB * s.dp, memory, MB * s.dp * sizeof(R));
        R *z = keep && s.layers ? hidden[0] + start * MB * s.hp : z_chunk;
        for (int i = 0; i < MB; i++) {
            const i64 sample = task.sample + i;
            const R *dense = a.dense ? (const R *)a.dense + sample * a.dense_batch + start * a.dense_time + task.neuron * a.dense_neuron : nullptr;
            integrate(events,
                      Steps<R>{sample * a.all_steps + a.first_step + start, count, samples.arriving(i, start, count), a.kappa_b ? w.kappa_b : nullptr,
                               w.first_bias, f + i * s.fp, s.first, dense, a.dense_time, z + i * s.fp, MB * s.fp, s.fp},
                      0, s.first, false);
            if (Lanes<R>::PAD > W)  // vectors beyond the last one that holds a column
                for (i64 t = 0; t < count; t++)
                    for (i64 j = (s.first + W - 1) / W * W; j < s.fp; j += W) store(z + (t * MB + i) * s.fp + j, Vector<R>{});
        }
        for (i64 t = start; t < start + count; t++, z += MB * s.fp) {
            R *th = keep ? (R *)a.saved + s.saved_tanh(a, task) + t * MB * s.dp : tanh_step;
            const auto propose = [&](int i, int v, Vector<R> x) ELM_LAMBDA {
                const Vector<R> y = tanh_of(x * all<R>(R(TANH_SLOPE)));
                store(th + i * s.dp + v * W, y);
                store(memory + i * s.dp + v * W, load(decayed + i * s.dp + v * W) + load(w.gain + v * W) * y);
            };
            const auto start_z = [&](int i, int v) ELM_LAMBDA { return load(z + i * s.fp + v * W); };
            if (s.layers == 0) {
                product<R, MB>(s.d, int(s.dp / W), decayed, s.dp, 1, w.recurrent, s.fp, start_z, propose);
            } else {
                // relu keeps its output, silu its input: what the derivative is read from
                R *in = silu ? post : z;
                product<R, MB>(s.d, int(s.hp / W), decayed, s.dp, 1, w.recurrent, s.fp, start_z, [&](int i, int v, Vector<R> x) ELM_LAMBDA {
                    if (silu) store(z + i * s.hp + v * W, x);
                    store(in + i * s.hp + v * W, activated<R>(x, silu));
                });
                for (i64 l = 0; l + 1 < s.layers; l++) {
                    R *z_l = hidden[l + 1] + (keep ? t * MB * s.hp : 0);
                    R *next = !silu ? z_l : in == post ? post_next : post;
                    const R *bias = w.bias[l];
                    behind_relu<R, MB>(
                        sparse, s.h, active, int(s.hp / W), in, s.hp, w.weight[l], s.hp, [&](int, int v) ELM_LAMBDA { return load(bias + v * W); },
                        [&](int i, int v, Vector<R> x) ELM_LAMBDA {
                            if (silu) store(z_l + i * s.hp + v * W, x);
                            store(next + i * s.hp + v * W, activated<R>(x, silu));
                        });
                    in = next;
                }
                const R *bias = w.bias[s.layers - 1];
                behind_relu<R, MB>(
                    sparse, s.h, active, int(s.dp / W), in, s.hp, w.weight[s.layers - 1], s.dp, [&](int, int v) ELM_LAMBDA { return load(bias + v * W); }, propose);
            }
            if (a.y)
                product<R, MB>(
                    s.d, int(s.op / W), memory, s.dp, 1, w.readout, s.op, [&](int, int v) ELM_LAMBDA { return load(w.read_bias + v * W); },
                    [&](int i, int v, Vector<R> x) ELM_LAMBDA { store(y + i * s.op + v * W, x); });
            for (int i = 0; i < MB; i++) {
                const R *m = memory + i * s.dp;
                for (i64 j = 0; j < s.dp; j += W) store(decayed + i * s.dp + j, load(m + j) * load(w.kappa + j));
                if (t == samples.length[i] - 1) copy_row((R *)a.m_last + samples.row[i] * s.d, m, s.d);
                if (a.y && t < samples.length[i])
                    copy_row((R *)a.y + (task.sample + i) * a.y_batch + t * a.y_time + task.neuron * a.y_neuron, y + i * s.op, s.o);
            }
        }
    }
    for (int i = 0; i < MB; i++) {
        if (a.f_last) copy_row((R *)a.f_last + samples.row[i] * s.first, f + i * s.fp, s.first);
        for (i64 t = samples.length[i]; a.y && t < s.steps; t++)
            std::memset((R *)a.y + (task.sample + i) * a.y_batch + t * a.y_time + task.neuron * a.y_neuron, 0, s.o * sizeof(R));
    }
    return true;
}

template <class R, int MB>
static __attribute__((noinline)) bool backward_task(const ElmScan &a, const Shape<R> &s, const Neuron<R> &w, const Task &task, const Gradients<R> &sum,
                                                    R *grad_table) {
    constexpr int W = Lanes<R>::W;
    constexpr i64 CHUNK = ROWS_PER_CHUNK / MB;
    const bool silu = a.silu;
    const Samples<MB> samples(a, task);
    const i64 rows = (CHUNK < samples.longest ? CHUNK : samples.longest) * MB;
    Arena arena((size_t)(MB * (5 * s.dp + s.fp) + s.hp + 16 + rows * (2 * s.dp + s.op) + 2 * s.layers * rows * s.hp + 64 * (10 + 2 * s.layers)) * sizeof(R));
    if (!arena.base) return false;
    R *g = arena.take<R>(MB * s.dp), *carry = arena.take<R>(MB * s.dp), *d_kappa = arena.take<R>(MB * s.dp), *d_gain = arena.take<R>(MB * s.dp);
    R *f = arena.take<R>(MB * s.fp), *dq = arena.take<R>(rows * s.dp), *before = arena.take<R>((rows + MB) * s.dp), *dy = arena.take<R>(rows * s.op);
    int32_t *active = arena.take<int32_t>(s.hp + 16);
    const bool sparse = !silu;
    R *dz[ELM_MAX_LAYERS], *post[ELM_MAX_LAYERS];
    const R *hidden[ELM_MAX_LAYERS];
    for (i64 l = 0; l < s.layers; l++) {
        dz[l] = arena.take<R>(rows * s.hp);
        post[l] = silu ? arena.take<R>(rows * s.hp) : nullptr;
        hidden[l] = (const R *)a.saved + s.saved_hidden(a, l, task);
    }
    const R *tanhs = (const R *)a.saved + s.saved_tanh(a, task), *memory = (const R *)a.saved + s.saved_memory(a, task);
    const R *grad_y[MB];
    for (int i = 0; i < MB; i++) grad_y[i] = (const R *)a.grad_y + (task.sample + i) * a.grad_y_batch + task.neuron * a.grad_y_neuron;
    if (a.grad_f_last)
        for (int i = 0; i < MB; i++) copy_row(f + i * s.fp, (const R *)a.grad_f_last + samples.row[i] * s.first, s.first);
    const Arrivals<R> events = arrivals<R>(a, s, task.neuron, grad_table);
    for (i64 start = (samples.longest - 1) / CHUNK * CHUNK; start >= 0 && samples.longest; start -= CHUNK) {
        const i64 count = samples.longest - start < CHUNK ? samples.longest - start : CHUNK;
        std::memcpy(before, memory + start / CHUNK * MB * s.dp, MB * s.dp * sizeof(R));
        for (i64 t = 0; t < count; t++)  // the memory once more, from its tanh
            for (int i = 0; i < MB; i++)
                for (i64 j = 0; j < s.dp; j += W) {
                    const i64 o = (t * MB + i) * s.dp + j;
                    store(before + o + MB * s.dp, load(before + o) * load(w.kappa + j) + load(w.gain + j) * load(tanhs + start * MB * s.dp + o));
                }
        for (i64 t = start; t < start + count; t++)
            for (int i = 0; i < MB; i++) {
                R *to = dy + ((t - start) * MB + i) * s.op;
                if (t < samples.length[i])
                    copy_row(to, grad_y[i] + t * a.grad_y_time, s.o);
                else
                    std::memset(to, 0, s.op * sizeof(R));
            }
        for (i64 t = start + count - 1; t >= start; t--) {
            const i64 at = (t - start) * MB;
            R *q = dq + at * s.dp;
            const R *gy = dy + at * s.op, *m = before + at * s.dp, *th = tanhs + t * MB * s.dp;
            if (t >= CHUNK) {  // what the next chunk reads: no processor expects it backward in time
                prefetch(tanhs + (t - CHUNK) * MB * s.dp, MB * s.dp * sizeof(R));
                for (i64 l = 0; l < s.layers; l++) prefetch(hidden[l] + (t - CHUNK) * MB * s.hp, MB * s.hp * sizeof(R));
            }
            for (int i = 0; i < MB; i++)
                if (a.grad_m_last && t == samples.length[i] - 1) add_row(carry + i * s.dp, (const R *)a.grad_m_last + samples.row[i] * s.d, s.d);
            product<R, MB>(
                s.o, int(s.dp / W), gy, s.op, 1, w.readout, s.dp, [&](int i, int v) ELM_LAMBDA { return load(carry + i * s.dp + v * W); },
                [&](int i, int v, Vector<R> x) ELM_LAMBDA {  // x: gradient of the memory
                    const i64 o = i * s.dp + v * W;
                    const Vector<R> y = load(th + o);
                    store(g + o, x);
                    store(d_gain + o, load(d_gain + o) + x * y);
                    store(q + o, x * load(w.gain + v * W) * all<R>(R(TANH_SLOPE)) * (all<R>(R(1)) - y * y));
                });
            const R *flow = q;
            i64 terms = s.d, row = s.dp;
            for (i64 l = s.layers - 1; l >= 0; l--) {
                R *to = dz[l] + at * s.hp, *h = silu ? post[l] + at * s.hp : nullptr;
                const R *z = hidden[l] + t * MB * s.hp;
                behind_relu<R, MB>(
                    sparse && flow != q, terms, active, int(s.hp / W), flow, row, w.weight[l], s.hp, [](int, int) ELM_LAMBDA { return Vector<R>{}; },
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
            behind_relu<R, MB>(
                sparse && s.layers, terms, active, int(s.dp / W), flow, row, w.recurrent, s.dp, [&](int i, int v) ELM_LAMBDA { return load(g + i * s.dp + v * W); },
                [&](int i, int v, Vector<R> x) ELM_LAMBDA {  // x: gradient of the decayed memory
                    const i64 o = i * s.dp + v * W;
                    store(d_kappa + o, load(d_kappa + o) + x * load(m + o));
                    store(carry + o, x * load(w.kappa + v * W));
                });
        }
        const i64 num = count * MB;
        for (i64 l = s.layers - 1; l >= 0; l--) {
            const R *out = l + 1 == s.layers ? dq : dz[l + 1], *h = silu ? post[l] : hidden[l] + start * MB * s.hp;
            add_outer(num, out, s.outp(l), s.out(l), h, s.hp, sum.weight[l]);
            add_rows(num, out, s.outp(l), sum.bias[l]);
        }
        R *flow = s.layers ? dz[0] : dq;
        add_outer(num, flow, s.fp, s.first, before, s.dp, sum.recurrent);
        add_rows(num, flow, s.fp, sum.first_bias);
        add_outer(num, dy, s.op, s.o, before + MB * s.dp, s.dp, sum.readout);
        add_rows(num, dy, s.op, sum.read_bias);
        if (!grad_table && !a.grad_dense && !a.grad_initial) continue;
        for (int i = 0; i < MB; i++) {
            const i64 sample = task.sample + i;
            R *dense = a.grad_dense ? (R *)a.grad_dense + sample * a.dense_batch + start * a.dense_time + task.neuron * a.dense_neuron : nullptr;
            integrate(events,
                      Steps<R>{sample * a.all_steps + a.first_step + start, count, samples.arriving(i, start, count), a.kappa_b ? w.kappa_b : nullptr,
                               nullptr, f + i * s.fp, s.fp, flow + i * s.fp, MB * s.fp, dense, a.dense_time, s.first},
                      0, s.first, true);
        }
    }
    for (int i = 0; i < MB; i++) {
        for (i64 j = 0; j < s.dp; j += W) {
            store(sum.kappa + j, load(sum.kappa + j) + load(d_kappa + i * s.dp + j));
            store(sum.gain + j, load(sum.gain + j) + load(d_gain + i * s.dp + j));
        }
        if (a.grad_m_last && samples.length[i] == 0) add_row(carry + i * s.dp, (const R *)a.grad_m_last + samples.row[i] * s.d, s.d);
        if (a.grad_m_0) copy_row((R *)a.grad_m_0 + samples.row[i] * s.d, carry + i * s.dp, s.d);
        if (a.grad_initial) copy_row((R *)a.grad_initial + samples.row[i] * s.first, f + i * s.fp, s.first);
        for (i64 t = samples.longest; a.grad_dense && t < s.steps; t++)
            std::memset((R *)a.grad_dense + (task.sample + i) * a.dense_batch + t * a.dense_time + task.neuron * a.dense_neuron, 0, s.first * sizeof(R));
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

// Whether another share begins with the neuron that this one begins in the middle of: then it adds up that neuron's table apart.
ELM_INLINE bool begins_inside(const ElmScan &a, const ElmShare &share) { return a.grad_table && share.first < share.last && task_at(a, share.first).sample; }

template <class R> static void scan_backward(const ElmScan *a, ElmShare *share) {
    if (share->first == share->last) return;
    const Shape<R> s(*a);
    Arena arena(Neuron<R>::bytes(s));
    share->status = !arena.base;
    if (share->status) return;
    Neuron<R> w(s, arena, false);
    const i64 first = task_at(*a, share->first).neuron, count = task_at(*a, share->last - 1).neuron - first + 1, table = a->num_input * s.fp;
    const bool apart = begins_inside(*a, *share);
    void *sums = nullptr;
    const size_t bytes = (size_t)(count * s.gradients() + (apart ? table : 0)) * sizeof(R);
    share->status = posix_memalign(&sums, 64, bytes) != 0;
    if (share->status) return;
    std::memset(sums, 0, bytes);
    share->scratch = sums;
    i64 current = -1;
    for (i64 index = share->first; index < share->last; index++) {
        const Task task = task_at(*a, index);
        if (task.neuron != current) w.read(*a, current = task.neuron);
        const Gradients<R> sum(s, (R *)sums + (task.neuron - first) * s.gradients());
        R *grad_table = !a->grad_table ? nullptr : apart && task.neuron == first ? (R *)sums + count * s.gradients() : (R *)a->grad_table + task.neuron * table;
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

template <class R> ELM_INLINE void add_to(void *to, i64 rows, i64 columns, const R *from, i64 from_row, R factor, bool fresh) {
    for (i64 i = 0; i < rows; i++)
        for (i64 j = 0; j < columns; j++) {
            R *entry = (R *)to + i * columns + j;
            *entry = (fresh ? R(0) : *entry) + from[i * from_row + j] * factor;
        }
}

// The threads' sums, added in the order of the threads; returns 1 where one of them lacked memory.
template <class R> static i64 scan_reduce(const ElmScan *a, const ElmShare *share, i64 num_share) {
    const Shape<R> s(*a);
    i64 lacking = 0;
    for (i64 k = 0; k < num_share; k++) lacking |= share[k].status;
    i64 done = -1;  // the last neuron that has been written
    for (i64 k = 0; k < num_share; k++) {
        if (!lacking && share[k].first < share[k].last) {
            const R *sums = (const R *)share[k].scratch;
            const i64 first = task_at(*a, share[k].first).neuron, last = task_at(*a, share[k].last - 1).neuron, table = a->num_input * s.fp;
            if (begins_inside(*a, share[k])) {
                const R *apart = sums + (last - first + 1) * s.gradients();
                R *to = (R *)a->grad_table + first * table;
                for (i64 j = 0; j < table; j++) to[j] += apart[j];
            }
            for (i64 n = first; n <= last; n++) {
                const Gradients<R> sum(s, (R *)share[k].scratch + (n - first) * s.gradients());
                const bool fresh = n > done && !a->accumulate;
                add_to((R *)a->grad_kappa + n * s.d, 1, s.d, sum.kappa, s.dp, R(1), fresh);
                add_to((R *)a->grad_gain + n * s.d, 1, s.d, sum.gain, s.dp, R(TANH_SCALE), fresh);
                add_to((R *)a->grad_w_y + n * s.o * s.d, s.o, s.d, sum.readout, s.dp, R(1), fresh);
                add_to((R *)a->grad_b_y + n * s.o, 1, s.o, sum.read_bias, s.op, R(1), fresh);
                if (a->grad_bias) add_to((R *)a->grad_bias + n * s.first, 1, s.first, sum.first_bias, s.fp, R(1), fresh);
                // rows of `recurrent` met the memory before its decay
                for (i64 i = 0; i < s.first; i++) {
                    R *to = (R *)a->grad_w_m + (n * s.first + i) * s.d;
                    const R *kappa = (const R *)a->kappa + n * s.d, *from = sum.recurrent + i * s.dp;
                    for (i64 j = 0; j < s.d; j++) to[j] = (fresh ? R(0) : to[j]) + from[j] * kappa[j];
                }
                for (i64 l = 0; l < s.layers; l++) {
                    add_to((R *)a->grad_weight[l] + n * s.out(l) * s.h, s.out(l), s.h, sum.weight[l], s.hp, R(1), fresh);
                    add_to((R *)a->grad_layer_bias[l] + n * s.out(l), 1, s.out(l), sum.bias[l], s.outp(l), R(1), fresh);
                }
                done = n > done ? n : done;
            }
        }
        free(share[k].scratch);
    }
    return lacking;
}

}  // namespace ELM_ISA
