// How a pass over a sequence is cut into tasks, and how a neuron's weights, its gradients and what is saved are laid
// out.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

// Rows (steps * samples) that are integrated, and whose outer products are added up, at a time: at 100 memory units
// what they work with is 300 KiB in float32, a second-level cache; fewer rows make the sums of the outer products
// short.
constexpr i64 ROWS_PER_CHUNK = 128;

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
    i64 d, h, first, o, dp, hp, fp, op, layers, steps,
        rows;  // first: width of what is integrated; ..p: padded; rows: of all tasks, a step
    explicit Shape(const ElmScan &a)
        : d(a.num_memory),
          h(a.hidden),
          first(a.num_layers ? a.hidden : a.num_memory),
          o(a.num_output),
          dp(padded<R>(d)),
          hp(padded<R>(h)),
          fp(padded<R>(first)),
          op(padded<R>(o)),
          layers(a.num_layers),
          steps(a.num_steps),
          rows(a.num_neuron * a.batch) {}
    i64 out(i64 l) const { return l + 1 == layers ? d : h; }  // of layer l after the first
    i64 outp(i64 l) const { return l + 1 == layers ? dp : hp; }
    i64 weights() const {
        i64 size = fp * dp + op * dp;
        for (i64 l = 0; l < layers; l++) size += outp(l) * hp;
        return size;
    }
    i64 gradients() const {
        i64 size = weights() + 2 * dp + fp + 2 * op;
        for (i64 l = 0; l < layers; l++) size += outp(l);
        return size;
    }
    // saved: for each layer its hidden units, then the tanh, then the memory before each chunk; each (task, time,
    // sample)
    i64 first_row(const ElmScan &a, const Task &task) const { return task.neuron * a.batch + task.sample; }
    i64 saved_hidden(const ElmScan &a, i64 l, const Task &task) const {
        return (l * rows + first_row(a, task)) * steps * hp;
    }
    i64 saved_tanh(const ElmScan &a, const Task &task) const {
        return layers * rows * steps * hp + first_row(a, task) * steps * dp;
    }
    i64 saved_memory(const ElmScan &a, const Task &task) const {
        const i64 chunks = (steps * TILE + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK;
        return rows * steps * (layers * hp + dp) + first_row(a, task) * chunks * dp;
    }
};

template <class R>
ELM_INLINE void pack(R *to, i64 to_row, const R *from, i64 from_row, i64 rows, i64 columns, bool transposed) {
    if (transposed) {
        for (i64 i = 0; i < rows; i++)
            for (i64 j = 0; j < columns; j++) to[j * to_row + i] = from[i * from_row + j];
    } else {
        for (i64 i = 0; i < rows; i++) copy_row(to + i * to_row, from + i * from_row, columns);
    }
}

// One neuron's constants and weights, padded with zeros; transposed (in, out) for the forward pass, (out, in) for the
// backward pass.
template <class R> struct Neuron {
    const Shape<R> &s;
    const bool transposed;
    R *kappa, *gain, *recurrent, *readout, *read_bias, *threshold, *first_bias, *kappa_b, *weight[ELM_MAX_LAYERS],
        *bias[ELM_MAX_LAYERS];
    Neuron(const Shape<R> &shape, Arena &arena, bool forward) : s(shape), transposed(forward) {
        kappa = arena.take<R>(s.dp);
        gain = arena.take<R>(s.dp);
        recurrent = arena.take<R>(s.fp * s.dp);
        readout = arena.take<R>(s.op * s.dp);
        read_bias = arena.take<R>(s.op);
        threshold = arena.take<R>(s.op);
        first_bias = arena.take<R>(s.fp);
        kappa_b = arena.take<R>(s.fp);
        for (i64 l = 0; l < s.layers; l++) {
            weight[l] = arena.take<R>(s.outp(l) * s.hp);
            bias[l] = arena.take<R>(s.outp(l));
        }
    }
    static size_t bytes(const Shape<R> &s) {
        return (size_t)(s.gradients() + s.fp) * sizeof(R) + 64 * (2 * s.layers + 8);
    }
    void read(const ElmScan &a, i64 n) {
        copy_row(kappa, (const R *)a.kappa + n * s.d, s.d);
        copy_row(gain, (const R *)a.gain + n * s.d, s.d);
        for (i64 j = 0; j < s.dp; j += Lanes<R>::W) store(gain + j, load(gain + j) * all<R>(R(TANH_SCALE)));
        pack(recurrent, transposed ? s.fp : s.dp, (const R *)a.w_m + n * a.w_m_neuron, a.w_m_row, s.first, s.d,
             transposed);
        pack(readout, transposed ? s.op : s.dp, (const R *)a.w_y + n * s.o * s.d, s.d, s.o, s.d, transposed);
        copy_row(read_bias, (const R *)a.b_y + n * s.o, s.o);
        if (a.threshold && a.one_threshold)
            for (i64 j = 0; j < s.o; j++) threshold[j] = *(const R *)a.threshold;
        else if (a.threshold)
            copy_row(threshold, (const R *)a.threshold + n * s.o, s.o);
        if (a.bias) copy_row(first_bias, (const R *)a.bias + n * s.first, s.first);
        if (a.kappa_b)
            for (i64 j = 0; j < s.first; j++) kappa_b[j] = *(const R *)a.kappa_b;
        for (i64 l = 0; l < s.layers; l++) {
            const i64 out = s.out(l);
            pack(weight[l], transposed ? s.outp(l) : s.hp, (const R *)a.weight[l] + n * out * s.h, s.h, out, s.h,
                 transposed);
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

// Sums over the samples and steps that one thread has seen of one neuron, padded.
template <class R> struct Gradients {
    R *kappa, *gain, *recurrent, *readout, *read_bias, *threshold, *first_bias, *weight[ELM_MAX_LAYERS],
        *bias[ELM_MAX_LAYERS];
    Gradients(const Shape<R> &s, R *base) {
        kappa = base;
        gain = kappa + s.dp;
        recurrent = gain + s.dp;
        readout = recurrent + s.fp * s.dp;
        read_bias = readout + s.op * s.dp;
        threshold = read_bias + s.op;
        first_bias = threshold + s.op;
        base = first_bias + s.fp;
        for (i64 l = 0; l < s.layers; l++) {
            weight[l] = base;
            bias[l] = base + s.outp(l) * s.hp;
            base = bias[l] + s.outp(l);
        }
    }
};

}  // namespace ELM_ISA
