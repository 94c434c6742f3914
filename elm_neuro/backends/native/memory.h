// The memory recurrence m = kappa m + gain * 1.7159 tanh(2/3 MLP(u_t + W kappa m)), forward and backward, a few samples at a time.
#pragma once
#include "products.h"

namespace ELM_ISA {

// Scaled tanh of the authors' code.
constexpr double TANH_SCALE = 1.7159, TANH_SLOPE = 2.0 / 3.0;
constexpr i64 ROWS_PER_CHUNK = 128;  // rows (steps * samples) whose outer products are added up at a time

struct Task {
    i64 neuron, sample, count;
};

// Task `index` of a neuron-major list: whole tiles of samples first, then what is left in powers of two.
ELM_INLINE Task task_at(const ElmMemory &a, i64 index) {
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
    i64 d, h, first, dp, hp, fp, layers, steps;  // first: width of u; ..p: padded
    explicit Shape(const ElmMemory &a)
        : d(a.num_memory), h(a.hidden), first(a.num_layers ? a.hidden : a.num_memory), dp(padded<R>(d)), hp(padded<R>(h)), fp(padded<R>(first)),
          layers(a.num_layers), steps(a.num_steps) {}
    i64 out(i64 l) const { return l + 1 == layers ? d : h; }  // of layer l after the first
    i64 outp(i64 l) const { return l + 1 == layers ? dp : hp; }
    i64 weights() const {
        i64 size = fp * dp;
        for (i64 l = 0; l < layers; l++) size += outp(l) * hp;
        return size;
    }
    i64 gradients() const {
        i64 size = weights() + 2 * dp;
        for (i64 l = 0; l < layers; l++) size += outp(l);
        return size;
    }
    // saved: for each layer its hidden units, then the tanh; each (neuron, sample, time) as tasks take them
    i64 saved_hidden(const ElmMemory &a, i64 l, const Task &task) const {
        return l * a.num_neuron * a.batch * steps * hp + (task.neuron * a.batch + task.sample) * steps * hp;
    }
    i64 saved_tanh(const ElmMemory &a, const Task &task) const {
        return layers * a.num_neuron * a.batch * steps * hp + (task.neuron * a.batch + task.sample) * steps * dp;
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
    R *kappa, *gain, *recurrent, *weight[ELM_MAX_LAYERS], *bias[ELM_MAX_LAYERS];
    Neuron(const Shape<R> &shape, Arena &arena, bool forward) : s(shape), transposed(forward) {
        kappa = arena.take<R>(s.dp);
        gain = arena.take<R>(s.dp);
        recurrent = arena.take<R>(s.fp * s.dp);
        for (i64 l = 0; l < s.layers; l++) {
            weight[l] = arena.take<R>(s.outp(l) * s.hp);
            bias[l] = arena.take<R>(s.outp(l));
        }
    }
    static size_t bytes(const Shape<R> &s) { return (size_t)(s.gradients() + 64 * (2 * s.layers + 3)) * sizeof(R); }
    void read(const ElmMemory &a, i64 n) {
        copy_row(kappa, (const R *)a.kappa + n * s.d, s.d);
        copy_row(gain, (const R *)a.gain + n * s.d, s.d);
        for (i64 j = 0; j < s.dp; j += Lanes<R>::W) store(gain + j, load(gain + j) * all<R>(R(TANH_SCALE)));
        pack(recurrent, transposed ? s.fp : s.dp, (const R *)a.w_m + n * a.w_m_neuron, a.w_m_row, s.first, s.d, transposed);
        for (i64 l = 0; l < s.layers; l++) {
            const i64 out = s.out(l);
            pack(weight[l], transposed ? s.outp(l) : s.hp, (const R *)a.weight[l] + n * out * s.h, s.h, out, s.h, transposed);
            copy_row(bias[l], (const R *)a.bias[l] + n * out, out);
        }
    }
};

// Whether there was memory enough.
template <class R, int MB> static __attribute__((noinline)) bool forward_task(const ElmMemory &a, const Shape<R> &s, const Neuron<R> &w, const Task &task) {
    constexpr int W = Lanes<R>::W;
    const bool silu = a.silu;
    Arena arena((size_t)MB * (2 * s.dp + s.fp + (2 * s.layers + 1) * s.hp + s.dp + 64 * (s.layers + 4)) * sizeof(R));
    if (!arena.base) return false;
    R *decayed = arena.take<R>(MB * s.dp), *memory = arena.take<R>(MB * s.dp), *z_0 = arena.take<R>(MB * s.fp), *post = arena.take<R>(MB * s.hp);
    R *post_next = arena.take<R>(MB * s.hp);
    R *hidden[ELM_MAX_LAYERS + 1], *tanhs;
    const i64 keep = a.saved ? 1 : 0;
    for (i64 l = 0; l < s.layers; l++) hidden[l] = keep ? (R *)a.saved + s.saved_hidden(a, l, task) : arena.take<R>(MB * s.hp);
    tanhs = keep ? (R *)a.saved + s.saved_tanh(a, task) : arena.take<R>(MB * s.dp);
    const R *u[MB];
    R *out[MB];
    for (int i = 0; i < MB; i++) {
        u[i] = (const R *)a.u + (task.sample + i) * a.u_batch + task.neuron * a.u_neuron;
        out[i] = (R *)a.memory + (task.sample + i) * a.memory_batch + task.neuron * a.memory_neuron;
        if (a.m_0) copy_row(decayed + i * s.dp, (const R *)a.m_0 + ((task.sample + i) * a.num_neuron + task.neuron) * s.d, s.d);
        for (i64 j = 0; j < s.dp; j += W) store(decayed + i * s.dp + j, load(decayed + i * s.dp + j) * load(w.kappa + j));
    }
    for (i64 t = 0; t < s.steps; t++) {
        for (int i = 0; i < MB; i++) copy_row(z_0 + i * s.fp, u[i] + t * a.u_time, s.first);
        R *th = tanhs + keep * t * MB * s.dp;
        const auto propose = [&](int i, int v, Vector<R> x) ELM_LAMBDA {
            const Vector<R> y = tanh_of(x * all<R>(R(TANH_SLOPE)));
            store(th + i * s.dp + v * W, y);
            store(memory + i * s.dp + v * W, load(decayed + i * s.dp + v * W) + load(w.gain + v * W) * y);
        };
        const auto start = [&](int i, int v) ELM_LAMBDA { return load(z_0 + i * s.fp + v * W); };
        if (s.layers == 0) {
            product<R, MB>(s.d, int(s.dp / W), decayed, s.dp, 1, w.recurrent, s.fp, start, propose);
        } else {
            // relu keeps its output, silu its input: what the derivative is read from
            R *in = silu ? post : hidden[0] + keep * t * MB * s.hp;
            R *z = hidden[0] + keep * t * MB * s.hp;
            product<R, MB>(s.d, int(s.hp / W), decayed, s.dp, 1, w.recurrent, s.fp, start, [&](int i, int v, Vector<R> x) ELM_LAMBDA {
                if (silu) store(z + i * s.hp + v * W, x);
                store(in + i * s.hp + v * W, activated<R>(x, silu));
            });
            for (i64 l = 0; l + 1 < s.layers; l++) {
                z = hidden[l + 1] + keep * t * MB * s.hp;
                R *next = !silu ? z : in == post ? post_next : post;
                const R *bias = w.bias[l];
                product<R, MB>(
                    s.h, int(s.hp / W), in, s.hp, 1, w.weight[l], s.hp, [&](int, int v) ELM_LAMBDA { return load(bias + v * W); },
                    [&](int i, int v, Vector<R> x) ELM_LAMBDA {
                        if (silu) store(z + i * s.hp + v * W, x);
                        store(next + i * s.hp + v * W, activated<R>(x, silu));
                    });
                in = next;
            }
            const R *bias = w.bias[s.layers - 1];
            product<R, MB>(
                s.h, int(s.dp / W), in, s.hp, 1, w.weight[s.layers - 1], s.dp, [&](int, int v) ELM_LAMBDA { return load(bias + v * W); }, propose);
        }
        for (int i = 0; i < MB; i++) {
            const R *m = memory + i * s.dp;
            for (i64 j = 0; j < s.dp; j += W) store(decayed + i * s.dp + j, load(m + j) * load(w.kappa + j));
            copy_row(out[i] + t * a.memory_time, m, s.d);
        }
    }
    return true;
}

// Sums over the samples and steps that one thread has seen of one neuron, padded.
template <class R> struct Gradients {
    R *kappa, *gain, *recurrent, *weight[ELM_MAX_LAYERS], *bias[ELM_MAX_LAYERS];
    Gradients(const Shape<R> &s, R *base) {
        kappa = base;
        gain = kappa + s.dp;
        recurrent = gain + s.dp;
        base = recurrent + s.fp * s.dp;
        for (i64 l = 0; l < s.layers; l++) {
            weight[l] = base;
            bias[l] = base + s.outp(l) * s.hp;
            base = bias[l] + s.outp(l);
        }
    }
};

template <class R, int MB>
static __attribute__((noinline)) bool backward_task(const ElmMemory &a, const Shape<R> &s, const Neuron<R> &w, const Task &task, const Gradients<R> &sum) {
    constexpr int W = Lanes<R>::W;
    const bool silu = a.silu;
    const i64 chunk = ROWS_PER_CHUNK / MB < s.steps ? ROWS_PER_CHUNK / MB : s.steps;
    const i64 rows = chunk * MB;
    Arena arena((size_t)(4 * MB * s.dp + 2 * rows * s.dp + 2 * s.layers * rows * s.hp + 64 * (8 + 2 * s.layers)) * sizeof(R));
    if (!arena.base) return false;
    R *g = arena.take<R>(MB * s.dp), *carry = arena.take<R>(MB * s.dp), *d_kappa = arena.take<R>(MB * s.dp), *d_gain = arena.take<R>(MB * s.dp);
    R *dq = arena.take<R>(rows * s.dp), *before = arena.take<R>(rows * s.dp);
    R *dz[ELM_MAX_LAYERS + 1], *post[ELM_MAX_LAYERS + 1];
    const R *hidden[ELM_MAX_LAYERS + 1];
    for (i64 l = 0; l < s.layers; l++) {
        dz[l] = arena.take<R>(rows * s.hp);
        post[l] = silu ? arena.take<R>(rows * s.hp) : nullptr;
        hidden[l] = (const R *)a.saved + s.saved_hidden(a, l, task);
    }
    const R *tanhs = (const R *)a.saved + s.saved_tanh(a, task);
    const R *grad[MB], *memory[MB], *m_0[MB];
    R *grad_u[MB];
    for (int i = 0; i < MB; i++) {
        grad[i] = (const R *)a.grad_memory + (task.sample + i) * a.grad_batch + task.neuron * a.grad_neuron;
        memory[i] = (const R *)a.memory + (task.sample + i) * a.memory_batch + task.neuron * a.memory_neuron;
        m_0[i] = a.m_0 ? (const R *)a.m_0 + ((task.sample + i) * a.num_neuron + task.neuron) * s.d : nullptr;
        grad_u[i] = (R *)a.grad_u + (task.sample + i) * a.u_batch + task.neuron * a.u_neuron;
    }
    for (i64 last = s.steps; last > 0;) {
        const i64 start = last > chunk ? last - chunk : 0;
        for (i64 t = last - 1; t >= start; t--) {
            const i64 at = (t - start) * MB;
            R *q = dq + at * s.dp, *m = before + at * s.dp;
            for (int i = 0; i < MB; i++) {
                copy_row(g + i * s.dp, grad[i] + t * a.grad_time, s.d);
                if (t)
                    copy_row(m + i * s.dp, memory[i] + (t - 1) * a.memory_time, s.d);
                else if (m_0[i])
                    copy_row(m + i * s.dp, m_0[i], s.d);
                else
                    std::memset(m + i * s.dp, 0, s.dp * sizeof(R));
                for (i64 j = 0; j < s.dp; j += W) {
                    const i64 o = i * s.dp + j;
                    const Vector<R> total = load(g + o) + load(carry + o), y = load(tanhs + (t * MB) * s.dp + o);
                    store(g + o, total);
                    store(d_gain + o, load(d_gain + o) + total * y);
                    store(q + o, total * load(w.gain + j) * all<R>(R(TANH_SLOPE)) * (all<R>(R(1)) - y * y));
                }
            }
            const R *flow = q;
            i64 terms = s.d, row = s.dp;
            for (i64 l = s.layers - 1; l >= 0; l--) {
                R *to = dz[l] + at * s.hp, *h = silu ? post[l] + at * s.hp : nullptr;
                const R *z = hidden[l] + t * MB * s.hp;
                product<R, MB>(
                    terms, int(s.hp / W), flow, row, 1, w.weight[l], s.hp, [](int, int) ELM_LAMBDA { return Vector<R>{}; },
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
            product<R, MB>(
                terms, int(s.dp / W), flow, row, 1, w.recurrent, s.dp, [&](int i, int v) ELM_LAMBDA { return load(g + i * s.dp + v * W); },
                [&](int i, int v, Vector<R> x) ELM_LAMBDA {  // x: gradient of the decayed memory
                    const i64 o = i * s.dp + v * W;
                    store(d_kappa + o, load(d_kappa + o) + x * load(m + o));
                    store(carry + o, x * load(w.kappa + v * W));
                });
            for (int i = 0; i < MB; i++) copy_row(grad_u[i] + t * a.u_time, flow + i * s.fp, s.first);
        }
        const i64 num = (last - start) * MB;
        for (i64 l = s.layers - 1; l >= 0; l--) {
            const R *out = l + 1 == s.layers ? dq : dz[l + 1], *h = silu ? post[l] : hidden[l] + start * MB * s.hp;
            add_outer(num, out, s.outp(l), s.outp(l), h, s.hp, sum.weight[l]);
            add_rows(num, out, s.outp(l), sum.bias[l]);
        }
        add_outer(num, s.layers ? dz[0] : dq, s.fp, s.fp, before, s.dp, sum.recurrent);
        last = start;
    }
    for (int i = 0; i < MB; i++) {
        for (i64 j = 0; j < s.dp; j += W) {
            store(sum.kappa + j, load(sum.kappa + j) + load(d_kappa + i * s.dp + j));
            store(sum.gain + j, load(sum.gain + j) + load(d_gain + i * s.dp + j));
        }
        if (a.grad_m_0) copy_row((R *)a.grad_m_0 + ((task.sample + i) * a.num_neuron + task.neuron) * s.d, carry + i * s.dp, s.d);
    }
    return true;
}

template <class R> static void memory_forward(const ElmMemory *a, ElmShare *share) {
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

template <class R> static void memory_backward(const ElmMemory *a, ElmShare *share) {
    if (share->first == share->last) return;
    const Shape<R> s(*a);
    Arena arena(Neuron<R>::bytes(s));
    share->status = !arena.base;
    if (share->status) return;
    Neuron<R> w(s, arena, false);
    const i64 first = task_at(*a, share->first).neuron, count = task_at(*a, share->last - 1).neuron - first + 1;
    void *sums = nullptr;
    const size_t bytes = (size_t)count * s.gradients() * sizeof(R);
    share->status = posix_memalign(&sums, 64, bytes) != 0;
    if (share->status) return;
    std::memset(sums, 0, bytes);
    share->scratch = sums;
    i64 current = -1;
    for (i64 index = share->first; index < share->last; index++) {
        const Task task = task_at(*a, index);
        if (task.neuron != current) w.read(*a, current = task.neuron);
        const Gradients<R> sum(s, (R *)sums + (task.neuron - first) * s.gradients());
        switch (task.count) {
#if defined(__AVX512F__)
            case 8: share->status |= !backward_task<R, 8>(*a, s, w, task, sum); break;
#endif
            case 4: share->status |= !backward_task<R, 4>(*a, s, w, task, sum); break;
            case 2: share->status |= !backward_task<R, 2>(*a, s, w, task, sum); break;
            default: share->status |= !backward_task<R, 1>(*a, s, w, task, sum);
        }
    }
}

template <class R> ELM_INLINE void add_to(R *to, i64 rows, i64 columns, const R *from, i64 from_row, R factor, bool fresh) {
    for (i64 i = 0; i < rows; i++)
        for (i64 j = 0; j < columns; j++) {
            const R value = from[i * from_row + j] * factor;
            to[i * columns + j] = fresh ? value : to[i * columns + j] + value;
        }
}

// The threads' sums, added in the order of the threads; returns 1 where one of them lacked memory.
template <class R> static i64 memory_reduce(const ElmMemory *a, const ElmShare *share, i64 num_share) {
    const Shape<R> s(*a);
    i64 lacking = 0;
    for (i64 k = 0; k < num_share; k++) lacking |= share[k].status;
    i64 done = -1;  // the last neuron that has been written
    for (i64 k = 0; k < num_share; k++) {
        if (lacking) free(share[k].scratch);
        if (lacking || share[k].first == share[k].last) continue;
        const i64 first = task_at(*a, share[k].first).neuron, last = task_at(*a, share[k].last - 1).neuron;
        for (i64 n = first; n <= last; n++) {
            const Gradients<R> sum(s, (R *)share[k].scratch + (n - first) * s.gradients());
            const bool fresh = n > done;
            add_to((R *)a->grad_kappa + n * s.d, 1, s.d, sum.kappa, s.dp, R(1), fresh);
            add_to((R *)a->grad_gain + n * s.d, 1, s.d, sum.gain, s.dp, R(TANH_SCALE), fresh);
            // rows of `recurrent` met the memory before its decay
            for (i64 i = 0; i < s.first; i++) {
                R *to = (R *)a->grad_w_m + (n * s.first + i) * s.d;
                const R *kappa = (const R *)a->kappa + n * s.d, *from = sum.recurrent + i * s.dp;
                for (i64 j = 0; j < s.d; j++) to[j] = (fresh ? R(0) : to[j]) + from[j] * kappa[j];
            }
            for (i64 l = 0; l < s.layers; l++) {
                add_to((R *)a->grad_weight[l] + n * s.out(l) * s.h, s.out(l), s.h, sum.weight[l], s.hp, R(1), fresh);
                add_to((R *)a->grad_bias[l] + n * s.out(l), 1, s.out(l), sum.bias[l], s.outp(l), R(1), fresh);
            }
            done = n > done ? n : done;
        }
        free(share[k].scratch);
    }
    return lacking;
}

}  // namespace ELM_ISA
