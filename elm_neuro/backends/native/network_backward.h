// A layer of ELM neurons over a sequence, backward. In the words of the head of network.h, for the gradient x' of x:
//
//     a'_t = (of the output) + (through the synapses that read it) of step t + 1        q' = a'_t f'(q)       bias' += q'
//     r'_t = kappa_r r'_{t+1} - q'      y'_t = q' + (1 - kappa_r) r'_t      kappa_r' += r'_t (r_{t-1} - y_t)
//     m'_t = kappa_m p'_{t+1} + w_y y'_t      w_y' += y'_t m_t      gain' += 1.7159 m'_t tanh(2/3 o_t)
//     o'_t = 2/3 1.7159 gain (1 - tanh(2/3 o_t)^2) m'_t + sign(o_t) change' / num_memory
//     [b'_t, p] = through the MLP from o'_t      p'_t = p + m'_t      kappa_m' += p'_t m_{t-1}
//     b'_t += kappa_b b'_{t+1}      kappa_b' += b'_t b_{t-1}      w_s' += g b'_t u_t      u'_t += g w_s b'_t
//
// The steps of a chunk leave behind the gradients of a neuron's sums; then each neuron goes through its chunk again,
// with memory, branches and hidden units from what was kept, and adds up the gradients of its parameters.
//
// Longer than most files: both walks share the rows that the first leaves behind, and are read side by side.
#pragma once
#include "network_task.h"

namespace ELM_ISA {

template <class R, int BYTES, bool NEURONS> struct NetworkBackward : NetworkTask<R, BYTES, NEURONS> {
    typedef NetworkTask<R, BYTES, NEURONS> Task;
    typedef typename Task::B B;
    typedef typename Task::V V;
    typedef typename Wiring<R>::Feed Feed;
    typedef typename Wiring<R>::Loop Loop;
    typedef typename Wiring<R>::Send Send;
    typedef NetworkParts Parts;
    using Task::a, Task::s, Task::w, Task::L, Task::EACH, Task::SAMPLES, Task::STEPS, Task::BLOCK, Task::SOURCE;
    using Task::VECTORS, Task::samples, Task::longest, Task::room;

    const Parts &parts;
    R *const sums;  // of the gradients, as `parts` lays them out
    // A row of `grads` is, of one unit and step: b' where there are traces, p', the hidden layers' sums, o', y' and r'.
    // b' without traces costs less to compute again than to store.
    const i64 row, of_hidden, of_o;
    R *rows, *grads, *grad_x, *of_output;                       // what the layer reads; (unit, step); of a chunk
    R *m, *b, *r, *gain, *bias;                                 // carried from step to step, and sums
    R *mask, *held, *arrived, *of_a, *change;                   // of neurons: see `receive`
    R *of_in, *of_all, *above, *column, *seen, *hidden, *z, *g, *local;  // room to work in
    R *column_by_neuron, *seen_by_neuron;                                // of one branch, (neuron of a unit, step)
    unsigned char *active;

    static i64 row_of(const NetworkShape &s) {
        return (s.trace ? s.branches : 0) + s.d + s.hidden + s.d + 1 + s.high_pass;
    }
    static size_t bytes(const ElmNetwork &a, const NetworkShape &s) {
        i64 vectors = (s.units * (row_of(s) + 1) + s.in + 1 + 2 * s.widest) * Task::room_of(a);
        vectors += s.units * (2 * s.d + s.branches + 7) + 2 * s.in + s.units * s.branches + 2 * s.widest + 3 * s.d;
        return vectors * BYTES + (2 * s.inputs + s.n + 2 * EACH) * SOURCE * sizeof(R) + s.sources + 30 * 64;
    }
    NetworkBackward(const ElmNetwork &args, const NetworkShape &shape, const Wiring<R> &wiring, i64 task, Arena &arena,
                    R *total, const Parts &where)
        : Task(args, shape, wiring, task),
          parts(where),
          sums(total),
          row(row_of(shape)),
          of_hidden((shape.trace ? shape.branches : 0) + shape.d),
          of_o(of_hidden + shape.hidden) {
        rows = arena.room<R>(s.sources * SOURCE);
        grad_x = a.grad_x ? arena.room<R>(s.inputs * SOURCE) : nullptr;
        grads = arena.room<R>(s.units * row * room * L);
        of_output = arena.take<R>(s.units * room * L);
        m = arena.take<R>(s.units * s.d * L);
        gain = arena.take<R>(s.units * s.d * L);
        b = arena.take<R>(s.units * s.branches * L);
        R **of_neurons[] = {&r, &mask, &held, &arrived, &of_a, &change, &bias};
        for (R **one : of_neurons) *one = arena.take<R>(s.units * L);
        seen = arena.room<R>(s.in * room * L);
        column = arena.room<R>(room * L);
        above = arena.room<R>(s.widest * room * L);
        hidden = arena.take<R>(s.widest * room * L + Lanes<R>::W);
        of_all = NEURONS ? arena.take<R>(s.units * s.branches * L) : nullptr;
        column_by_neuron = arena.take<R>(EACH * SOURCE);
        seen_by_neuron = arena.take<R>(EACH * SOURCE);
        of_in = arena.take<R>(s.in * L);
        z = arena.take<R>(s.widest * L + Lanes<R>::W);
        g = arena.take<R>(s.widest * L + Lanes<R>::W);
        local = arena.take<R>(3 * s.d * L);
        active = arena.take<unsigned char>(s.sources);
    }

    void run() {
        this->read(held, a.grad_a_last, 1);
        this->read(m, a.grad_m_last, s.d);
        if (s.trace) this->read(b, a.grad_b_last, s.branches);
        if (s.high_pass) this->read(r, a.grad_r_last, 1);
        if (a.recurrent_mask) this->read(mask, a.recurrent_mask, 1);
        this->read(change, a.grad_change, 1);
        for (i64 k = 0; k < s.units * L; k++) change[k] /= R(s.d);
        for (i64 start = (longest - 1) / STEPS * STEPS; start >= 0 && longest; start -= STEPS) {
            const i64 count = longest - start < STEPS ? longest - start : STEPS;
            const V left = this->remaining(start);
            read_output(start, count);
            for (i64 t = count - 1; t >= 0; t--) {
                receive(left, t);
                for (i64 u = 0; u < s.units; u++) step(left, start, t, u);
                if constexpr (NEURONS) collect();
            }
            this->arrivals(start, count, rows, active);
            this->fed_back(start, count, rows + s.inputs * SOURCE, active + s.inputs);
            if (grad_x) std::memset(grad_x, 0, s.inputs * SOURCE * sizeof(R));
            for (i64 u = 0; u < s.units; u++) learn(left, start, count, u);
            if (grad_x) write_grad_x(start, count);
        }
        for (i64 lane = 0; a.grad_x && lane < samples; lane++)
            std::memset((R *)a.grad_x + ((this->first + lane) * a.num_steps + longest) * s.inputs, 0,
                        (a.num_steps - longest) * s.inputs * sizeof(R));
        for (i64 u = 0; u < s.units; u++) {
            settle(Parts::BIAS, u, 0, 1, B::at(bias + u * L));
            for (i64 i = 0; i < s.d; i++)
                settle(Parts::GAIN, u, i, s.d, B::at(gain + (u * s.d + i) * L) * R(TANH_SCALE));
            B::put(held + u * L, B::at(held + u * L) + of_arrived(u));
        }
        this->write(a.grad_a_0, held, 1);
        this->write(a.grad_m_0, m, s.d);
        if (s.trace) this->write(a.grad_b_0, b, s.branches);
        if (s.high_pass) this->write(a.grad_r_0, r, 1);
    }

    // Adds to the gradient of entry k of a unit's parameters, `entries` a neuron.
    void settle(int part, i64 u, i64 k, i64 entries, V x) const {
        B::settle(sums + parts.begin[part] + u * EACH * entries + k, entries, this->neurons(u), x);
    }

    // The gradient that came for the output, (step, unit).
    void read_output(i64 start, i64 count) const {
        for (i64 lane = 0; a.grad_a && lane < samples; lane++)
            for (i64 t = 0; t < count && start + t < this->valid(lane); t++) {
                const R *from = (const R *)a.grad_a + (this->first + lane) * a.grad_batch + (start + t) * a.grad_time;
                for (i64 n = 0; n < s.n; n++) of_output[t * s.units * L + this->place(n, 0, 1, lane)] = from[n];
            }
    }

    void write_grad_x(i64 start, i64 count) const {
        for (i64 lane = 0; lane < samples; lane++) {
            const R *factor = a.input_mask ? (const R *)a.input_mask + (this->first + lane) * s.inputs : nullptr;
            for (i64 t = 0; t < count; t++) {
                R *to = (R *)a.grad_x + ((this->first + lane) * a.num_steps + start + t) * s.inputs;
                for (i64 c = 0; c < s.inputs; c++) {
                    const R grad = grad_x[c * SOURCE + t * SAMPLES + lane];
                    to[c] = factor ? grad * factor[c] : grad;
                }
            }
        }
    }

    V of_arrived(i64 u) const {
        const V through = B::at(arrived + u * L);
        return a.recurrent_mask ? through * B::at(mask + u * L) : through;
    }

    // a'_t from what `arrived` in step t + 1; a sample that is over holds what it has.
    void receive(V left, i64 t) const {
        const auto running = left > B::all(R(t));
        const V zero = {};
        for (i64 u = 0; u < s.units; u++) {
            const V later = B::at(held + u * L) + of_arrived(u);
            B::put(of_a + u * L, running ? later + B::at(of_output + (t * s.units + u) * L) : zero);
            B::put(held + u * L, running ? zero : later);
            B::put(arrived + u * L, zero);
        }
    }

    // q' from a'_t.
    V through_output(V grad, V q) const {
        if (a.output == ELM_OUTPUT_RELU) return q > V{} ? grad : V{};
        Vector<R> wide = {};
        __builtin_memcpy(&wide, &q, BYTES);
        wide = slope_of<R>(wide, a.surrogate, a.setting);
        __builtin_memcpy(&q, &wide, BYTES);
        return grad * q;
    }

    ELM_INLINE_MEMBER void step(V left, i64 start, i64 t, i64 u) const {
        const auto running = left > B::all(R(t));
        const V zero = {}, one = B::all(R(1)), size = B::at(change + u * L);
        const i64 d = s.d;
        const R *keep = this->kept(start + t) + u * s.kept() * L, *tanh = keep + s.hidden * L;
        if (start + t) prefetch(keep - s.units * s.kept() * L, s.kept() * BYTES);
        R *to = grads + (u * room + t) * row * L, *to_o = to + of_o * L;
        V of_y = B::at(of_a + u * L);
        if (s.kinked) of_y = through_output(of_y, B::at(tanh + d * L));
        B::put(bias + u * L, B::at(bias + u * L) + of_y);
        if (s.high_pass) {
            const V kappa_r = B::weight(w.kappa_r + u * EACH);
            const V carried = B::at(r + u * L), of_r = running ? carried - of_y : zero;
            of_y += of_r * (R(1) - kappa_r);
            B::put(r + u * L, running ? of_r * kappa_r : carried);
            B::put(to_o + (d + 1) * L, of_r);
        }
        B::put(to_o + d * L, of_y);
        const i64 weights = u * d * EACH;
        const R *factor = w.gain + weights, *w_y = w.w_y + weights;
        R *of_m = m + u * d * L, *of_gain = gain + u * d * L;
        for (i64 i = 0; i < d; i++) {
            const V th = B::at(tanh + i * L), grad = B::at(of_m + i * L) + of_y * B::weight(w_y + i * EACH);
            const V of_size = th > zero ? size : th < zero ? -size : zero;
            const V through = grad * (one - th * th) * (B::weight(factor + i * EACH) * R(TANH_SCALE * TANH_SLOPE));
            B::put(of_m + i * L, grad);
            B::put(of_gain + i * L, B::at(of_gain + i * L) + (running ? grad * th : zero));
            B::put(to_o + i * L, running ? through + of_size : zero);
        }
        through_mlp(u, keep, to);
        const R *kappa_m = w.kappa_m + weights, *of_read = of_in + s.branches * L;
        R *to_p = to + (of_hidden - d) * L;
        for (i64 i = 0; i < d; i++) {
            const V carried = B::at(of_m + i * L), of_decayed = B::at(of_read + i * L) + carried;
            B::put(to_p + i * L, running ? of_decayed : zero);
            B::put(of_m + i * L, running ? of_decayed * B::weight(kappa_m + i * EACH) : carried);
        }
        send(running, u, to);
    }

    // From o' to the gradients of what the MLP reads, in `of_in`; the hidden layers' stay in the row `to`.
    ELM_INLINE_MEMBER void through_mlp(i64 u, const R *keep, R *to) const {
        const R *from = to + of_o * L;
        i64 unit = s.hidden;
        for (i64 l = s.layers - 1; l > 0; l--) {
            const i64 width = a.width[l - 1];
            unit -= width;
            product<B, R>(w.weight[l] + u * s.weights(a, l) * EACH, width, nullptr, from, a.width[l], g);
            std::memcpy(z, keep + unit * L, width * BYTES);
            network_slope(a.activation, z, g, width * L);
            R *at = to + (of_hidden + unit) * L;
            std::memcpy(at, g, width * BYTES);
            from = at;
        }
        product<B, R>(w.weight[0] + u * s.weights(a, 0) * EACH, s.in, nullptr, from, a.width[0], of_in);
    }

    // b' and what it gives the neurons that the branches read.
    template <class Mask> ELM_INLINE_MEMBER void send(Mask running, i64 u, R *to) const {
        R *of_branches = of_in, *through = arrived;
        if (s.trace) {
            R *trace = b + u * s.branches * L;
            const R *kappa_b = w.kappa_b + u * s.branches * EACH;
            for (i64 j = 0; j < s.branches; j++) {
                const V carried = B::at(trace + j * L), of_b = B::at(of_branches + j * L) + carried;
                const V masked = running ? of_b : V{};
                B::put(of_branches + j * L, masked);
                B::put(to + j * L, masked);
                B::put(trace + j * L, running ? of_b * B::weight(kappa_b + j * EACH) : carried);
            }
        }
        if constexpr (NEURONS) {
            std::memcpy(of_all + u * s.branches * L, of_branches, s.branches * BYTES);
            return;
        }
        const Loop *end = w.loop + w.loop_begin[u + 1];
        for (const Loop *one = w.loop + w.loop_begin[u]; one < end; one++) {
            R *source = through + one->source * L;
            B::put(source, B::at(source) + B::at(of_branches + one->branch * L) * one->weight);
        }
    }

    // The same of all branches, a neuron that is read after the other.
    void collect() const {
        for (i64 n = 0; n < s.n; n++) {
            R sum[4] = {};
            const Send *one = w.send + w.send_begin[n], *end = w.send + w.send_begin[n + 1];
            for (; one + 4 <= end; one += 4)
                for (int k = 0; k < 4; k++) sum[k] += of_all[one[k].branch] * one[k].weight;
            for (; one < end; one++) sum[0] += of_all[one->branch] * one->weight;
            arrived[n] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        }
    }

    // The gradients of a unit's parameters through a chunk, from what its steps left behind.
    void learn(V left, i64 start, i64 count, i64 u) const {
        const R *from = grads + u * room * row * L, *begin = this->started(start) + u * s.start() * L;
        if (u + 1 < s.units) {
            prefetch(from + room * row * L, count * row * BYTES);
            for (i64 t = 0; t < count; t++) prefetch(this->kept(start + t) + (u + 1) * s.kept() * L, s.kept() * BYTES);
        }
        remember(left, start, count, u, begin, from);
        synapses(count, u, begin + s.d * L, from);
        i64 at = of_hidden, unit = 0;
        const R *read = seen;
        for (i64 l = 0; l < s.layers; l++) {
            const i64 width = a.width[l], reads = s.reads(a, l);
            const R *of_sums = from + (l + 1 == s.layers ? of_o : at) * L;
            outer<B>(of_sums, row * L, width, read, reads * L, reads, count,
                     sums + parts.begin[Parts::WEIGHT + l] + u * EACH * width * reads, this->neurons(u));
            for (i64 k = 0; k < width; k++) {
                V sum = {};
                for (i64 t = 0; t < count; t++) sum += B::at(of_sums + (t * row + k) * L);
                settle(Parts::LAYER_BIAS + l, u, k, width, sum);
            }
            if (l + 1 == s.layers) break;
            for (i64 t = 0; t < count; t++) {
                std::memcpy(z, this->kept(start + t) + (u * s.kept() + unit) * L, width * BYTES);
                network_activate(a.activation, z, hidden + t * width * L, width * L);
            }
            read = hidden;
            at += width;
            unit += width;
        }
    }

    // The first `width` columns of rows of `grads` as (column, step), zero past the last step.
    void turn(const R *from, i64 width, i64 count, R *to) const {
        for (i64 t = 0; t < Task::whole(count); t++)
            for (i64 k = 0; k < width; k++)
                B::put(to + (k * room + t) * L, t < count ? B::at(from + (t * row + k) * L) : V{});
    }

    // b' of one branch through a chunk without traces, from z', (unit, step), of the first layer.
    void of_branch_again(i64 u, i64 j, i64 count) const {
        const i64 width = a.width[0], in = s.in;
        const R *weights = w.weight[0] + (u * width * in + j) * EACH, *rows_above = above;
        for (i64 block = 0; block < Task::whole(count); block += BLOCK) {
            V sum[BLOCK];
#pragma GCC unroll 16
            for (int t = 0; t < BLOCK; t++) sum[t] = V{};
            for (i64 k = 0; k < width; k++) {
                const V weight = B::weight(weights + k * in * EACH);
                const R *one = rows_above + (k * room + block) * L;
#pragma GCC unroll 16
                for (int t = 0; t < BLOCK; t++) sum[t] += weight * B::at(one + t * L);
            }
#pragma GCC unroll 16
            for (int t = 0; t < BLOCK; t++) B::put(column + (block + t) * L, sum[t]);
        }
    }

    // Memory and running mean again, with the gradients of what they meet; kappa_m m_{t-1} as the MLP reads it.
    ELM_INLINE_MEMBER void remember(V left, i64 start, i64 count, i64 u, const R *begin, const R *from) const {
        const i64 d = s.d, in = s.in, branches = s.branches;
        const R *kappa_m = w.kappa_m + u * d * EACH, *factor = w.gain + u * d * EACH, *w_y = w.w_y + u * d * EACH;
        R *memory = local, *of_kappa = memory + d * L, *of_w_y = of_kappa + d * L, *to = seen + branches * L;
        std::memcpy(memory, begin, d * BYTES);
        std::memset(of_kappa, 0, 2 * d * BYTES);
        V mean = s.high_pass ? B::at(begin + (s.start() - 1) * L) : V{}, of_kappa_r = {};
        const V kappa_r = s.high_pass ? B::weight(w.kappa_r + u * EACH) : V{};
        for (i64 t = 0; t < count; t++) {
            const auto running = left > B::all(R(t));
            const R *of_y = from + (t * row + of_o + d) * L, *of_p = from + (t * row + of_hidden - d) * L;
            const R *tanh = this->kept(start + t) + (u * s.kept() + s.hidden) * L;
            V y = {};
            for (i64 i = 0; i < d; i++) {
                const V before = B::at(memory + i * L), decayed = before * B::weight(kappa_m + i * EACH);
                const V after = decayed + B::at(tanh + i * L) * (B::weight(factor + i * EACH) * R(TANH_SCALE));
                B::put(to + (t * in + i) * L, decayed);
                B::put(of_kappa + i * L, B::at(of_kappa + i * L) + B::at(of_p + i * L) * before);
                B::put(of_w_y + i * L, B::at(of_w_y + i * L) + B::at(of_y) * after);
                B::put(memory + i * L, running ? after : before);
                y += after * B::weight(w_y + i * EACH);
            }
            if (s.high_pass) {
                of_kappa_r += B::at(of_y + L) * (mean - y);
                mean = running ? mean * kappa_r + y * (R(1) - kappa_r) : mean;
            }
        }
        for (i64 i = 0; i < d; i++) {
            settle(Parts::KAPPA_M, u, i, d, B::at(of_kappa + i * L));
            settle(Parts::W_Y, u, i, d, B::at(of_w_y + i * L));
        }
        if (s.high_pass) settle(Parts::KAPPA_R, u, 0, 1, of_kappa_r);
    }

    // Branches again, with the gradients of their synapses, of their traces' decay and of the input.
    ELM_INLINE_MEMBER void synapses(i64 count, i64 u, const R *traces, const R *from) const {
        const i64 in = s.in;
        if (!s.trace) turn(from + (s.layers == 1 ? of_o : of_hidden) * L, a.width[0], count, above);
        for (i64 j = 0; j < s.branches; j++) {
            R *branch = seen + j * L;
            if (s.trace)
                turn(from + j * L, 1, count, column);
            else
                of_branch_again(u, j, count);
            if constexpr (NEURONS) {
                Task::from_vectors(column, L, count, column_by_neuron, SOURCE);
                for (i64 lane = 0; lane < this->neurons(u); lane++)
                    synapses_of(u * EACH + lane, j, count, column_by_neuron + lane * SOURCE, seen_by_neuron + lane * SOURCE, L);
                Task::to_vectors(seen_by_neuron, SOURCE, count, branch, in * L);
            } else
                synapses_of(u, j, count, column, branch, in * L);
            if (!s.trace) continue;
            const V kappa_b = B::weight(w.kappa_b + (u * s.branches + j) * EACH);
            V trace = B::at(traces + j * L), of_kappa = {};
            for (i64 t = 0; t < count; t++) {
                of_kappa += B::at(column + t * L) * trace;
                trace = trace * kappa_b + B::at(branch + t * in * L);
                B::put(branch + t * in * L, trace);
            }
            settle(Parts::KAPPA_B, u, j, s.branches, of_kappa);
        }
    }

    // Of one branch of a neuron, from b', `whole`; what arrived goes to vectors `apart` entries from one to the next.
    ELM_INLINE_MEMBER void synapses_of(i64 n, i64 j, i64 count, const R *whole, R *to, i64 apart) const {
        const R scale = R(a.input_scale), *w_s = (const R *)a.w_s + n * s.synapses, *sources = rows;
        const int64_t *source = a.index + n * s.synapses;
        const unsigned char *wakes = active;
        const i64 of_branch = a.num_synapse, vectors = (count * SAMPLES + L - 1) / L;
        R *of_w_s = sums + parts.begin[Parts::W_S] + n * s.synapses;
        for (i64 block = 0; block < vectors; block += BLOCK) {
            const R *part = whole + block * L;
            V sum[BLOCK];
#pragma GCC unroll 16
            for (int t = 0; t < BLOCK; t++) sum[t] = V{};
            for (i64 k = j * of_branch; k < (j + 1) * of_branch; k++) {
                if (!wakes[source[k]]) continue;
                const R *x = sources + source[k] * SOURCE + block * L;
                const V weight = B::all(w_s[k] * scale);
                V of_weight[2] = {};
#pragma GCC unroll 16
                for (int t = 0; t < BLOCK; t++) {
                    sum[t] += weight * B::at(x + t * L);
                    of_weight[t & 1] += B::at(part + t * L) * B::at(x + t * L);
                }
                of_w_s[k] += B::sum(of_weight[0] + of_weight[1]) * scale;
            }
            const i64 steps = vectors - block < BLOCK ? vectors - block : BLOCK;
            for (i64 t = 0; t < steps; t++) B::put(to + (block + t) * apart, sum[t]);
        }
        if (!grad_x) return;
        const i64 *range = w.feed_begin + n * s.branches + j;
        for (const Feed *one = w.feed + range[0]; one < w.feed + range[1]; one++) {
            R *of_source = grad_x + one->source * SOURCE;
            const V weight = B::all(one->weight);
            for (i64 t = 0; t < vectors; t++)
                B::put(of_source + t * L, B::at(of_source + t * L) + weight * B::at(whole + t * L));
        }
    }
};

}  // namespace ELM_ISA
