// A layer of ELM neurons over a sequence, forward: equations at the head of network.h.
#pragma once
#include "network_task.h"

namespace ELM_ISA {

template <class R, int BYTES, bool NEURONS> struct NetworkForward : NetworkTask<R, BYTES, NEURONS> {
    typedef NetworkTask<R, BYTES, NEURONS> Task;
    typedef typename Task::B B;
    typedef typename Task::V V;
    typedef typename Wiring<R>::Feed Feed;
    typedef typename Wiring<R>::Loop Loop;
    typedef typename Wiring<R>::Send Send;
    using Task::a, Task::s, Task::w, Task::L, Task::EACH, Task::SAMPLES, Task::STEPS, Task::BLOCK, Task::SOURCE;
    using Task::samples, Task::longest, Task::room;

    R *rows, *sums, *emitted;  // what arrives; sums of branches, (step, unit, branch); the output, (step, unit)
    R *m, *b, *r, *mask, *fed, *next, *last, *change;  // of neurons; `fed`, `next`: what the layer reads of itself
    R *in, *z, *h;                                     // the MLP's input, a layer's sums, what the next layer reads
    R *by_neuron;                                      // sums of one branch, (neuron of a unit, step)
    unsigned char *active;

    static size_t bytes(const ElmNetwork &a, const NetworkShape &s) {
        i64 vectors = s.units * (s.branches + 1) * Task::room_of(a);
        vectors += s.units * (s.d + s.branches + 6) + s.in + 2 * s.widest;
        return vectors * BYTES + (s.inputs + EACH) * SOURCE * sizeof(R) + s.inputs + 18 * 64;
    }
    NetworkForward(const ElmNetwork &args, const NetworkShape &shape, const Wiring<R> &wiring, i64 task, Arena &arena)
        : Task(args, shape, wiring, task) {
        rows = arena.room<R>(s.inputs * SOURCE);
        sums = arena.room<R>(s.units * s.branches * room * L);
        emitted = arena.room<R>(s.units * room * L);
        by_neuron = arena.take<R>(EACH * SOURCE);
        m = arena.take<R>(s.units * s.d * L);
        b = arena.take<R>(s.units * s.branches * L);
        R **of_neurons[] = {&r, &mask, &fed, &next, &last, &change};
        for (R **one : of_neurons) *one = arena.take<R>(s.units * L);
        in = arena.take<R>(s.in * L);
        z = arena.take<R>(s.widest * L + Lanes<R>::W);
        h = arena.take<R>(s.widest * L + Lanes<R>::W);
        active = arena.take<unsigned char>(s.inputs);
    }

    void run() {
        this->read(last, a.a_0, 1);
        this->read(m, a.m_0, s.d);
        if (s.trace) this->read(b, a.b_0, s.branches);
        if (s.high_pass) this->read(r, a.r_0, 1);
        if (a.recurrent_mask) this->read(mask, a.recurrent_mask, 1);
        for (i64 k = 0; k < s.units * L; k++) fed[k] = a.recurrent_mask ? last[k] * mask[k] : last[k];
        for (i64 start = 0; start < longest; start += STEPS) {
            const i64 count = longest - start < STEPS ? longest - start : STEPS;
            this->arrivals(start, count, rows, active);
            sum_inputs(count);
            if (a.saved) keep_start(this->started(start));
            const V left = this->remaining(start);
            for (i64 t = 0; t < count; t++) {
                if (w.by_source) send(sums + t * s.units * s.branches * L);
                for (i64 u = 0; u < s.units; u++) step(left, start, t, u);
                R *swapped = fed;
                fed = next;
                next = swapped;
            }
            write_output(start, count);
        }
        for (i64 lane = 0; lane < samples; lane++)
            for (i64 t = longest; t < a.num_steps; t++) std::memset(output(lane, t), 0, s.n * sizeof(R));
        for (i64 k = 0; k < s.units * L; k++) change[k] /= R(s.d);
        this->write(a.a_last, last, 1);
        this->write(a.m_last, m, s.d);
        this->write(a.change, change, 1);
        if (s.trace) this->write(a.b_last, b, s.branches);
        if (s.high_pass) this->write(a.r_last, r, 1);
    }

    R *output(i64 lane, i64 t) const { return (R *)a.a + (this->first + lane) * a.a_batch + t * a.a_time; }

    void write_output(i64 start, i64 count) const {
        for (i64 t = 0; t < count; t++)
            for (i64 lane = 0; lane < samples; lane++) {
                R *to = output(lane, start + t);
                for (i64 n = 0; n < s.n; n++) to[n] = emitted[t * s.units * L + this->place(n, 0, 1, lane)];
            }
    }

    void keep_start(R *to) const {
        for (i64 u = 0; u < s.units; u++) {
            std::memcpy(to, m + u * s.d * L, s.d * BYTES);
            to += s.d * L;
            if (s.trace) std::memcpy(to, b + u * s.branches * L, s.branches * BYTES), to += s.branches * L;
            if (s.high_pass) std::memcpy(to, r + u * L, BYTES), to += L;
        }
    }

    // Sums of the synapses that read inputs through a chunk.
    void sum_inputs(i64 count) const {
        const i64 branches = s.units * s.branches;
        if constexpr (NEURONS)
            for (i64 j = 0; j < branches; j++) {
                const i64 u = j / s.branches;
                for (i64 lane = 0; lane < this->neurons(u); lane++)
                    sum_branch((u * EACH + lane) * s.branches + j % s.branches, count, by_neuron + lane * SOURCE, L);
                Task::to_vectors(by_neuron, SOURCE, count, sums + j * L, branches * L);
            }
        else
            for (i64 j = 0; j < branches; j++) sum_branch(j, count, sums + j * L, branches * L);
    }

    // Of one branch of a neuron; `to`: vectors, `apart` entries from one to the next.
    ELM_INLINE_MEMBER void sum_branch(i64 j, i64 count, R *to, i64 apart) const {
        const Feed *from = w.feed + w.feed_begin[j], *end = w.feed + w.feed_begin[j + 1];
        for (i64 block = 0; block * L < count * SAMPLES; block += BLOCK) {
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
#pragma GCC unroll 16
            for (int t = 0; t < BLOCK; t++) B::put(to + (block + t) * apart, sum[t]);
        }
    }

    // What the neurons that sent something in the step before add to the branches that read them, `to`.
    void send(R *to) const {
        for (i64 n = 0; n < s.n; n++) {
            const Send *one = w.send + w.send_begin[n], *end = w.send + w.send_begin[n + 1];
            if constexpr (NEURONS) {
                const R sent = fed[n];
                if (sent == R(0)) continue;
                for (; one < end; one++) to[one->branch] += sent * one->weight;
            } else {
                const V sent = B::at(fed + n * L);
                if (!B::any(sent)) continue;
                for (; one < end; one++)
                    B::put(to + one->branch * L, B::at(to + one->branch * L) + sent * one->weight);
            }
        }
    }

    // Step t of a chunk for one unit.
    ELM_INLINE_MEMBER void step(V left, i64 start, i64 t, i64 u) const {
        const auto running = left > B::all(R(t));
        const V zero = {};
        const i64 branches = s.branches, d = s.d;
        arrive(running, sums + (t * s.units + u) * branches * L, u);
        const i64 weights = u * d * EACH;
        const R *kappa_m = w.kappa_m + weights, *gain = w.gain + weights, *w_y = w.w_y + weights;
        R *memory = m + u * d * L, *decayed = in + branches * L;
        for (i64 i = 0; i < d; i++) B::put(decayed + i * L, B::at(memory + i * L) * B::weight(kappa_m + i * EACH));
        R *keep = a.saved ? this->kept(start + t) + u * s.kept() * L : nullptr;
        propose(u, keep);
        R *tanh = h;
        if (keep) keep += s.hidden * L;
        V y = {}, size = {};
        for (i64 i = 0; i < d; i++) {
            const V o = B::at(z + i * L), th = B::at(tanh + i * L);
            const V after = B::at(decayed + i * L) + th * (B::weight(gain + i * EACH) * R(TANH_SCALE));
            size += o < zero ? -o : o;
            y += after * B::weight(w_y + i * EACH);
            B::put(memory + i * L, running ? after : B::at(memory + i * L));
            if (keep) B::put(keep + i * L, th);
        }
        if (s.high_pass) {
            const V kappa_r = B::weight(w.kappa_r + u * EACH);
            const V before = B::at(r + u * L), after = before * kappa_r + y * (R(1) - kappa_r);
            B::put(r + u * L, running ? after : before);
            y -= after;
        }
        y += B::weight(w.bias + u * EACH);
        if (keep && s.kinked) B::put(keep + d * L, y);
        if (a.output == ELM_OUTPUT_RELU) y = y < zero ? zero : y;
        if (a.output == ELM_OUTPUT_SPIKE) y = y > zero ? B::all(R(1)) : zero;
        const V held = running ? y : B::at(last + u * L);
        B::put(emitted + (t * s.units + u) * L, running ? y : zero);
        B::put(last + u * L, held);
        B::put(next + u * L, a.recurrent_mask ? held * B::at(mask + u * L) : held);
        B::put(change + u * L, B::at(change + u * L) + (running ? size : zero));
    }

    // The branches of a unit: what the inputs gave, with what the layer's own activity adds.
    template <class Mask> ELM_INLINE_MEMBER void arrive(Mask running, const R *from, i64 u) const {
        R *sum = in;
        const R *own = fed;
        std::memcpy(sum, from, s.branches * BYTES);
        if (!NEURONS && !w.by_source) {
            const Loop *end = w.loop + w.loop_begin[u + 1];
            for (const Loop *one = w.loop + w.loop_begin[u]; one < end; one++) {
                R *to = sum + one->branch * L;
                B::put(to, B::at(to) + B::at(own + one->source * L) * one->weight);
            }
        }
        if (!s.trace) return;
        R *trace = b + u * s.branches * L;
        const R *kappa_b = w.kappa_b + u * s.branches * EACH;
        for (i64 j = 0; j < s.branches; j++) {
            const V before = B::at(trace + j * L), after = before * B::weight(kappa_b + j * EACH) + B::at(sum + j * L);
            B::put(sum + j * L, after);
            B::put(trace + j * L, running ? after : before);
        }
    }

    // The MLP: o in z, its tanh in h; the hidden layers' sums are kept.
    ELM_INLINE_MEMBER void propose(i64 u, R *keep) const {
        const R *x = in;
        for (i64 l = 0; l < s.layers; l++) {
            const i64 width = a.width[l], reads = s.reads(a, l);
            product<B, R>(w.transposed[l] + u * width * reads * EACH, width, w.layer_bias[l] + u * width * EACH, x, reads,
                       z);
            if (l + 1 == s.layers) break;
            network_activate(a.activation, z, h, width * L);
            if (keep) std::memcpy(keep, z, width * BYTES), keep += width * L;
            x = h;
        }
        for (i64 k = 0; k < s.d * L; k += Lanes<R>::W) store(h + k, tanh_of(load(z + k) * all<R>(R(TANH_SLOPE))));
    }
};

}  // namespace ELM_ISA
