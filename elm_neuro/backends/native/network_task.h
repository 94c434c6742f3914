// What the passes of a layer of ELM neurons share: nonlinearities, and the samples of a task as vectors.
#pragma once
#include "network_layout.h"
#include "surrogates.h"

namespace ELM_ISA {

// `size` entries, whole vectors of which may be read and written: z becomes what is kept, h what the next layer reads.
template <class R> ELM_INLINE void network_activate(i64 activation, R *z, R *h, i64 size) {
    const Vector<R> zero = {};
    for (i64 k = 0; k < size; k += Lanes<R>::W) {
        Vector<R> x = load(z + k);
        if (activation != ELM_SILU) store(z + k, x = x < zero ? zero : x);
        store(h + k, activation == ELM_RELU_SQUARED ? x * x : activation == ELM_SILU ? x * sigmoid_of(x) : x);
    }
}

// g times the activation's slope, from what was kept.
template <class R> ELM_INLINE void network_slope(i64 activation, const R *z, R *g, i64 size) {
    const Vector<R> zero = {}, one = all<R>(R(1));
    for (i64 k = 0; k < size; k += Lanes<R>::W) {
        const Vector<R> x = load(z + k), grad = load(g + k);
        if (activation == ELM_RELU_SQUARED)
            store(g + k, grad * (x + x));
        else if (activation == ELM_RELU)
            store(g + k, x > zero ? grad : zero);
        else {
            const Vector<R> s = sigmoid_of(x);
            store(g + k, grad * s * (one + x * (one - s)));
        }
    }
}

template <class R, int BYTES, bool NEURONS> struct NetworkTask {
    typedef Batch<R, BYTES, NEURONS> B;
    typedef typename B::V V;
    static constexpr int L = B::L, EACH = B::EACH, SAMPLES = B::SAMPLES, STEPS = B::STEPS, BLOCK = B::BLOCK;
    static constexpr int VECTORS = B::VECTORS, SOURCE = B::SOURCE;
    const ElmNetwork &a;
    const NetworkShape &s;
    const Wiring<R> &w;
    const i64 index, first, samples, room;  // room: steps of a chunk for which there is memory
    i64 longest;

    NetworkTask(const ElmNetwork &args, const NetworkShape &shape, const Wiring<R> &wiring, i64 task)
        : a(args),
          s(shape),
          w(wiring),
          index(task),
          first(task * SAMPLES),
          samples(a.batch - first < SAMPLES ? a.batch - first : SAMPLES),
          room(room_of(args)),
          longest(0) {
        for (int lane = 0; lane < SAMPLES; lane++) longest = valid(lane) > longest ? valid(lane) : longest;
    }
    // Steps in whole blocks of vectors of them.
    static i64 whole(i64 steps) {
        constexpr i64 block = BLOCK * L / SAMPLES;
        return (steps + block - 1) / block * block;
    }
    static i64 room_of(const ElmNetwork &a) { return a.num_steps < STEPS ? whole(a.num_steps) : STEPS; }
    // Valid steps of a sample of the task; one that is not there has none.
    i64 valid(i64 lane) const { return lane >= samples ? 0 : a.lengths ? a.lengths[first + lane] : a.num_steps; }
    // Steps of a chunk that are valid, a lane each.
    V remaining(i64 start) const {
        R left[L];
        for (int lane = 0; lane < L; lane++) {
            const i64 more = valid(NEURONS ? 0 : lane) - start;
            left[lane] = R(more < 0 ? 0 : more < STEPS ? more : STEPS);
        }
        return B::at(left);
    }

    // What is kept: of every step, then of the start of every chunk; (step, unit, vectors).
    static i64 kept_size(const ElmNetwork &a, const NetworkShape &s) {
        return s.units * L * (a.num_steps * s.kept() + (a.num_steps + STEPS - 1) / STEPS * s.start());
    }
    R *kept(i64 step) const { return (R *)a.saved + index * kept_size(a, s) + step * s.units * s.kept() * L; }
    R *started(i64 start) const { return kept(a.num_steps) + start / STEPS * s.units * s.start() * L; }

    // Neurons of a unit.
    i64 neurons(i64 u) const { return s.n - u * EACH < EACH ? s.n - u * EACH : EACH; }
    // Where entry k of a neuron and sample lies in vectors (unit, entries).
    i64 place(i64 n, i64 k, i64 entries, i64 lane) const {
        return (n / EACH * entries + k) * L + (NEURONS ? n % EACH : lane);
    }
    // The entries of all neurons and samples to vectors and back.
    void read(R *to, const void *from, i64 entries) const {
        for (i64 lane = 0; from && lane < samples; lane++)
            for (i64 n = 0; n < s.n; n++)
                for (i64 k = 0; k < entries; k++)
                    to[place(n, k, entries, lane)] = ((const R *)from)[((first + lane) * s.n + n) * entries + k];
    }
    void write(void *to, const R *from, i64 entries) const {
        for (i64 lane = 0; to && lane < samples; lane++)
            for (i64 n = 0; n < s.n; n++)
                for (i64 k = 0; k < entries; k++)
                    ((R *)to)[((first + lane) * s.n + n) * entries + k] = from[place(n, k, entries, lane)];
    }

    // The first entry of a source in a chunk: only rows of active sources are read.
    static void clear(R *rows, unsigned char *active, i64 source) {
        R *row = rows + source * SOURCE;
#pragma GCC unroll 8
        for (int k = 0; k < VECTORS * L; k += Lanes<R>::W) store(row + k, Vector<R>{});
        active[source] = 1;
    }

    // What arrives from outside in the steps of a chunk, (inputs, SOURCE), in each row (STEPS, SAMPLES); `active`: whether
    // an input holds anything.
    void arrivals(i64 start, i64 count, R *rows, unsigned char *active) const {
        std::memset(active, 0, s.inputs);
        for (i64 t = 0; t < count; t++)
            for (i64 lane = 0; lane < samples; lane++) {
                if (start + t >= valid(lane)) continue;
                const i64 sample = first + lane;
                const R *mask = a.input_mask ? (const R *)a.input_mask + sample * s.inputs : nullptr;
                R *to = rows + t * SAMPLES + lane;
                const auto add = [&](i64 c, R value) ELM_LAMBDA {
                    if (mask) value *= mask[c];
                    if (NEURONS && value == R(0)) return;  // what dropout took is no source; of 8 samples it is for some
                    if (!active[c]) clear(rows, active, c);
                    to[c * SOURCE] += value;
                };
                if (a.begin) {
                    const i64 row = sample * a.num_steps + start + t;
                    for (i64 e = a.begin[row]; e < a.end[row]; e++)
                        add(a.wide ? ((const int64_t *)a.channel)[e] : ((const int32_t *)a.channel)[e],
                            a.value ? ((const R *)a.value)[e] : R(1));
                } else {
                    const R *frame = (const R *)a.x + sample * a.x_batch + (start + t) * a.x_time;
                    each_entry(frame, s.inputs, [&](i64 c) ELM_LAMBDA { add(c, frame[c]); });
                }
            }
    }

    // The same of what the layer itself sent a step before, which the forward pass has written.
    void fed_back(i64 start, i64 count, R *rows, unsigned char *active) const {
        std::memset(active, 0, s.n);
        for (i64 t = 0; t < count; t++)
            for (i64 lane = 0; lane < samples; lane++) {
                if (start + t >= valid(lane)) continue;
                const i64 sample = first + lane;
                const R *mask = a.recurrent_mask ? (const R *)a.recurrent_mask + sample * s.n : nullptr;
                const R *from = (const R *)a.a_0 + sample * s.n;
                if (start + t) from = (const R *)a.a + sample * a.a_batch + (start + t - 1) * a.a_time;
                each_entry(from, s.n, [&](i64 n) ELM_LAMBDA {
                    if (!active[n]) clear(rows, active, n);
                    rows[n * SOURCE + t * SAMPLES + lane] = mask ? from[n] * mask[n] : from[n];
                });
            }
    }

    // Numbers of L neurons in `steps`, rows of a neuron each, to vectors, rows of a step each, and back; in whole blocks.
    static void to_vectors(const R *from, i64 from_row, i64 steps, R *to, i64 to_row) {
        for (i64 t = 0; t < steps; t += L) B::turn(from + t, from_row, to + t * to_row, to_row);
    }
    static void from_vectors(const R *from, i64 from_row, i64 steps, R *to, i64 to_row) {
        for (i64 t = 0; t < steps; t += L) B::turn(from + t * from_row, from_row, to + t, to_row);
    }
};

}  // namespace ELM_ISA
