// The neuron over a sequence, forward and backward, a few samples at a time and some steps at a time: what arrives is integrated, then the
// memory m = kappa m + gain * 1.7159 tanh(2/3 MLP(z_t + W kappa m)) advances, then the readout y = W_y m + b_y.
//
// Long, because both directions share how samples, steps and buffers are laid out.
#pragma once
#include "drive.h"
#include "products.h"

namespace ELM_ISA {

// Scaled tanh of the authors' code.
constexpr double TANH_SCALE = 1.7159, TANH_SLOPE = 2.0 / 3.0;
constexpr i64 ROWS_PER_CHUNK = 128;  // rows (steps * samples) that are integrated, and whose outer products are added up, at a time

struct Task {
    i64 neuron, sample, count;
};

// Task `index` of a neuron-major list: whole tiles of samples first, then what is left in powers of two.
ELM_INLINE Task task_at(const ElmScan &a, i64 index) {
    const i64 whole = a.batch / a.tile, rest = a.batch % a.tile;
    const i64 per_neuron = whole + __builtin_popcountll((unsigned long long)rest);
    const i64 neuron = index / per_neuron, k = index % per_neuron;
    if (k < whole) return {neuron, k * a.tile, a.tile};
    i64 sample = whole * a.tile, size = a.tile;
    for (i64 left = k - whole;; left--) {
        do size /= 2;
        while (!(rest & size));
        if (left == 0) return {neuron, sample, size};
        sample += size;
    }
}

template <class R> struct Shape {
    i64 d, h, first, o, dp, hp, fp, op, layers, steps, rows;  // first: width of what is integrated; ..p: padded; rows: of all tasks, a step
    explicit Shape(const ElmScan &a)
        : d(a.num_memory), h(a.hidden), first(a.num_layers ? a.hidden : a.num_memory), o(a.num_output), dp(padded<R>(d)), hp(padded<R>(h)),
          fp(padded<R>(first)), op(padded<R>(o)), layers(a.num_layers), steps(a.num_steps), rows(a.num_neuron * a.batch) {}
    i64 out(i64 l) const { return l + 1 == layers ? d : h; }  // of layer l after the first
    i64 outp(i64 l) const { return l + 1 == layers ? dp : hp; }
    i64 weights() const {
        i64 size = fp * dp + op * dp;
        for (i64 l = 0; l < layers; l++) size += outp(l) * hp;
        return size;
    }
    i64 gradients() const {
        i64 size = weights() + 2 * dp + fp + op;
        for (i64 l = 0; l < layers; l++) size += outp(l);
        return size;
    }
    // saved: for each layer its hidden units, then the tanh, then the memory before each chunk; each (task, time, sample)
    i64 first_row(const ElmScan &a, const Task &task) const { return task.neuron * a.batch + task.sample; }
    i64 saved_hidden(const ElmScan &a, i64 l, const Task &task) const { return (l * rows + first_row(a, task)) * steps * hp; }
    i64 saved_tanh(const ElmScan &a, const Task &task) const { return layers * rows * steps * hp + first_row(a, task) * steps * dp; }
    i64 saved_memory(const ElmScan &a, const Task &task) const {
        const i64 chunks = (steps * TILE + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK;
        return rows * steps * (layers * hp + dp) + first_row(a, task) * chunks * dp;
    }
};

template <class R> ELM_INLINE void pack(R *to, i64 to_row, const R *from, i64 from_row, i64 rows, i64 columns, bool transposed) {
    if (transposed) {
        for (i64 i = 0; i < rows; i++)
            for (i64 j = 0; j < columns; j++) to[j * to_row + i] = from[i * from_row + j];
    } else {
        for (i64 i = 0; i < rows; i++) copy_row(to + i * to_row, from + i * from_row, columns);
    }
}

// One neuron's constants and weights, padded with zeros; transposed (in, out) for the forward pass, (out, in) for the backward pass.
template <class R> struct Neuron {
    const Shape<R> &s;
    const bool transposed;
    R *kappa, *gain, *recurrent, *readout, *read_bias, *first_bias, *kappa_b, *weight[ELM_MAX_LAYERS], *bias[ELM_MAX_LAYERS];
    Neuron(const Shape<R> &shape, Arena &arena, bool forward) : s(shape), transposed(forward) {
        kappa = arena.take<R>(s.dp);
        gain = arena.take<R>(s.dp);
        recurrent = arena.take<R>(s.fp * s.dp);
        readout = arena.take<R>(s.op * s.dp);
        read_bias = arena.take<R>(s.op);
        first_bias = arena.take<R>(s.fp);
        kappa_b = arena.take<R>(s.fp);
        for (i64 l = 0; l < s.layers; l++) {
            weight[l] = arena.take<R>(s.outp(l) * s.hp);
            bias[l] = arena.take<R>(s.outp(l));
        }
    }
    static size_t bytes(const Shape<R> &s) { return (size_t)(s.gradients() + s.fp) * sizeof(R) + 64 * (2 * s.layers + 7); }
    void read(const ElmScan &a, i64 n) {
        copy_row(kappa, (const R *)a.kappa + n * s.d, s.d);
        copy_row(gain, (const R *)a.gain + n * s.d, s.d);
        for (i64 j = 0; j < s.dp; j += Lanes<R>::W) store(gain + j, load(gain + j) * all<R>(R(TANH_SCALE)));
        pack(recurrent, transposed ? s.fp : s.dp, (const R *)a.w_m + n * a.w_m_neuron, a.w_m_row, s.first, s.d, transposed);
        pack(readout, transposed ? s.op : s.dp, (const R *)a.w_y + n * s.o * s.d, s.d, s.o, s.d, transposed);
        copy_row(read_bias, (const R *)a.b_y + n * s.o, s.o);
        if (a.bias) copy_row(first_bias, (const R *)a.bias + n * s.first, s.first);
        if (a.kappa_b)
            for (i64 j = 0; j < s.first; j++) kappa_b[j] = *(const R *)a.kappa_b;
        for (i64 l = 0; l < s.layers; l++) {
            const i64 out = s.out(l);
            pack(weight[l], transposed ? s.outp(l) : s.hp, (const R *)a.weight[l] + n * out * s.h, s.h, out, s.h, transposed);
            copy_row(bias[l], (const R *)a.layer_bias[l] + n * out, out);
        }
    }
};

// The samples of a task: how many steps each lasts, where its rows lie.
template <int MB> struct Samples {
    i64 length[MB], longest, row[MB];  // row: sample * num_neuron + neuron
    Samples(const ElmScan &a, const Task &task) : longest(0) {
        for (int i = 0; i < MB; i++) {
            length[i] = a.lengths ? a.lengths[task.sample + i] : a.num_steps;
            longest = length[i] > longest ? length[i] : longest;
            row[i] = (task.sample + i) * a.num_neuron + task.neuron;
        }
    }
    i64 arriving(int i, i64 start, i64 count) const {
        const i64 left = length[i] - start;
        return left < 0 ? 0 : left < count ? left : count;
    }
};

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

// Sums over the samples and steps that one thread has seen of one neuron, padded.
template <class R> struct Gradients {
    R *kappa, *gain, *recurrent, *readout, *read_bias, *first_bias, *weight[ELM_MAX_LAYERS], *bias[ELM_MAX_LAYERS];
    Gradients(const Shape<R> &s, R *base) {
        kappa = base;
        gain = kappa + s.dp;
        recurrent = gain + s.dp;
        readout = recurrent + s.fp * s.dp;
        read_bias = readout + s.op * s.dp;
        first_bias = read_bias + s.op;
        base = first_bias + s.fp;
        for (i64 l = 0; l < s.layers; l++) {
            weight[l] = base;
            bias[l] = base + s.outp(l) * s.hp;
            base = bias[l] + s.outp(l);
        }
    }
};

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
