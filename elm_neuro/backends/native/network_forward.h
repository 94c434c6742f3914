// A layer of ELM neurons over a sequence, forward: equations at the head of network.h.
#pragma once
#include "network_task.h"

namespace ELM_ISA {

template <class R, int BYTES> struct NetworkForward : NetworkTask<R, BYTES> {
    typedef NetworkTask<R, BYTES> Task;
    typedef typename Task::B B;
    typedef typename Task::V V;
    typedef typename Wiring<R>::Feed Feed;
    typedef typename Wiring<R>::Loop Loop;
    using Task::a, Task::s, Task::w, Task::L, Task::STEPS, Task::BLOCK, Task::SOURCE, Task::samples, Task::longest;

    R *rows, *sums, *emitted;  // what arrives; sums of branches, (step, neuron, branch); the output, (step, neuron)
    R *m, *b, *r, *mask, *fed, *next, *last, *change;  // of neurons; `fed`, `next`: what the layer reads of itself
    R *in, *z, *h;                                     // the MLP's input, a layer's sums, what the next layer reads
    unsigned char *active;

    static size_t bytes(const NetworkShape &s) {
        i64 vectors = s.inputs * (SOURCE_BYTES / BYTES) + s.n * (s.branches + 1) * STEPS;
        vectors += s.n * (s.d + s.branches + 6) + s.in + 2 * s.widest;
        return vectors * BYTES + s.inputs + 18 * 64;
    }
    NetworkForward(const ElmNetwork &args, const NetworkShape &shape, const Wiring<R> &wiring, i64 task, Arena &arena)
        : Task(args, shape, wiring, task) {
        rows = arena.take<R>(s.inputs * SOURCE);
        sums = arena.take<R>(s.n * s.branches * STEPS * L);
        emitted = arena.take<R>(s.n * STEPS * L);
        m = arena.take<R>(s.n * s.d * L);
        b = arena.take<R>(s.n * s.branches * L);
        R **of_neurons[] = {&r, &mask, &fed, &next, &last, &change};
        for (R **one : of_neurons) *one = arena.take<R>(s.n * L);
        in = arena.take<R>(s.in * L);
        z = arena.take<R>(s.widest * L + Lanes<R>::W);
        h = arena.take<R>(s.widest * L + Lanes<R>::W);
        active = arena.take<unsigned char>(s.inputs);
    }

    void run() {
        this->read(last, a.a_0, s.n);
        this->read(m, a.m_0, s.n * s.d);
        if (s.trace) this->read(b, a.b_0, s.n * s.branches);
        if (s.high_pass) this->read(r, a.r_0, s.n);
        if (a.recurrent_mask) this->read(mask, a.recurrent_mask, s.n);
        for (i64 k = 0; k < s.n * L; k++) fed[k] = a.recurrent_mask ? last[k] * mask[k] : last[k];
        for (i64 start = 0; start < longest; start += STEPS) {
            const i64 count = longest - start < STEPS ? longest - start : STEPS;
            this->arrivals(start, count, rows, active);
            sum_inputs(count);
            if (a.saved) keep_start(this->started(start));
            const V left = this->remaining(start);
            for (i64 t = 0; t < count; t++) {
                for (i64 n = 0; n < s.n; n++) step(left, start, t, n);
                R *swapped = fed;
                fed = next;
                next = swapped;
            }
            write_output(start, count);
        }
        for (i64 lane = 0; lane < samples; lane++)
            for (i64 t = longest; t < a.num_steps; t++) std::memset(output(lane, t), 0, s.n * sizeof(R));
        for (i64 k = 0; k < s.n * L; k++) change[k] /= R(s.d);
        this->write(a.a_last, last, s.n);
        this->write(a.m_last, m, s.n * s.d);
        this->write(a.change, change, s.n);
        if (s.trace) this->write(a.b_last, b, s.n * s.branches);
        if (s.high_pass) this->write(a.r_last, r, s.n);
    }

    R *output(i64 lane, i64 t) const { return (R *)a.a + (this->first + lane) * a.a_batch + t * a.a_time; }

    void write_output(i64 start, i64 count) const {
        for (i64 t = 0; t < count; t++)
            for (i64 lane = 0; lane < samples; lane++) {
                R *to = output(lane, start + t);
                for (i64 n = 0; n < s.n; n++) to[n] = emitted[(t * s.n + n) * L + lane];
            }
    }

    void keep_start(R *to) const {
        for (i64 n = 0; n < s.n; n++) {
            std::memcpy(to, m + n * s.d * L, s.d * BYTES);
            to += s.d * L;
            if (s.trace) std::memcpy(to, b + n * s.branches * L, s.branches * BYTES), to += s.branches * L;
            if (s.high_pass) std::memcpy(to, r + n * L, BYTES), to += L;
        }
    }

    // Sums of the synapses that read inputs through a chunk.
    void sum_inputs(i64 count) const {
        const i64 branches = s.n * s.branches;
        for (i64 j = 0; j < branches; j++) {
            const Feed *from = w.feed + w.feed_begin[j], *end = w.feed + w.feed_begin[j + 1];
            for (i64 block = 0; block < count; block += BLOCK) {
                V sum[BLOCK];
#pragma GCC unroll 16
                for (int t = 0; t < BLOCK; t++) sum[t] = V{};
                for (const Feed *one = from; one < end; one++) {
                    if (!active[one->source]) continue;
                    const R *row = rows + one->source * SOURCE + block * L;
                    const V weight = B::all(one->weight);
#pragma GCC unroll 16
                    for (int t = 0; t < BLOCK; t++) sum[t] += weight * B::at(row + t * L);
                }
                R *to = sums + (block * branches + j) * L;
#pragma GCC unroll 16
                for (int t = 0; t < BLOCK; t++) B::put(to + t * branches * L, sum[t]);
            }
        }
    }

    // Step t of a chunk for one neuron.
    ELM_INLINE_MEMBER void step(V left, i64 start, i64 t, i64 n) const {
        const auto running = left > B::all(R(t));
        const V zero = {};
        const i64 branches = s.branches, d = s.d;
        arrive(running, sums + (t * s.n + n) * branches * L, n);
        const R *kappa_m = (const R *)a.kappa_m + n * d, *gain = (const R *)a.gain + n * d;
        const R *w_y = (const R *)a.w_y + n * d;
        R *memory = m + n * d * L, *decayed = in + branches * L;
        for (i64 i = 0; i < d; i++) B::put(decayed + i * L, B::at(memory + i * L) * kappa_m[i]);
        R *keep = a.saved ? this->kept(start + t) + n * s.kept() * L : nullptr;
        propose(n, keep);
        R *tanh = h;
        if (keep) keep += s.hidden * L;
        V y = {}, size = {};
        for (i64 i = 0; i < d; i++) {
            const V o = B::at(z + i * L), th = B::at(tanh + i * L);
            const V after = B::at(decayed + i * L) + th * (gain[i] * R(TANH_SCALE));
            size += o < zero ? -o : o;
            y += after * w_y[i];
            B::put(memory + i * L, running ? after : B::at(memory + i * L));
            if (keep) B::put(keep + i * L, th);
        }
        if (s.high_pass) {
            const R kappa_r = ((const R *)a.kappa_r)[n];
            const V before = B::at(r + n * L), after = before * kappa_r + y * (R(1) - kappa_r);
            B::put(r + n * L, running ? after : before);
            y -= after;
        }
        y += B::all(((const R *)a.bias)[n]);
        if (keep && s.kinked) B::put(keep + d * L, y);
        if (a.output == ELM_OUTPUT_RELU) y = y < zero ? zero : y;
        if (a.output == ELM_OUTPUT_SPIKE) y = y > zero ? B::all(R(1)) : zero;
        const V held = running ? y : B::at(last + n * L);
        B::put(emitted + (t * s.n + n) * L, running ? y : zero);
        B::put(last + n * L, held);
        B::put(next + n * L, a.recurrent_mask ? held * B::at(mask + n * L) : held);
        B::put(change + n * L, B::at(change + n * L) + (running ? size : zero));
    }

    // The branches of a neuron: what the inputs gave, with what the layer's own activity adds.
    template <class Mask> ELM_INLINE_MEMBER void arrive(Mask running, const R *from, i64 n) const {
        R *sum = in;
        const R *own = fed;
        std::memcpy(sum, from, s.branches * BYTES);
        const Loop *end = w.loop + w.loop_begin[n + 1];
        for (const Loop *one = w.loop + w.loop_begin[n]; one < end; one++) {
            R *to = sum + one->branch * L;
            B::put(to, B::at(to) + B::at(own + one->source * L) * one->weight);
        }
        if (!s.trace) return;
        R *trace = b + n * s.branches * L;
        const R *kappa_b = (const R *)a.kappa_b + n * s.branches;
        for (i64 j = 0; j < s.branches; j++) {
            const V before = B::at(trace + j * L), after = before * kappa_b[j] + B::at(sum + j * L);
            B::put(sum + j * L, after);
            B::put(trace + j * L, running ? after : before);
        }
    }

    // The MLP: o in z, its tanh in h; the hidden layers' sums are kept.
    ELM_INLINE_MEMBER void propose(i64 n, R *keep) const {
        const R *x = in;
        for (i64 l = 0; l < s.layers; l++) {
            const i64 width = a.width[l], reads = s.reads(a, l);
            product<R, BYTES>(w.transposed[l] + n * width * reads, width, (const R *)a.layer_bias[l] + n * width, x,
                              reads, z);
            if (l + 1 == s.layers) break;
            network_activate(a.activation, z, h, width * L);
            if (keep) std::memcpy(keep, z, width * BYTES), keep += width * L;
            x = h;
        }
        for (i64 k = 0; k < s.d * L; k += Lanes<R>::W) store(h + k, tanh_of(load(z + k) * all<R>(R(TANH_SLOPE))));
    }
};

}  // namespace ELM_ISA
