// A recurrent layer of small ELM neurons over a sequence, forward and backward; u_t holds the inputs of step t and the
// activity of step t - 1:
//
//     b_t = kappa_b b_{t-1} + g (sums over the synapses of each branch of w_s u_t)      without kappa_b: no trace
//     o_t = MLP([b_t, kappa_m m_{t-1}])
//     m_t = kappa_m m_{t-1} + gain 1.7159 tanh(2/3 o_t)      y_t = w_y m_t
//     r_t = kappa_r r_{t-1} + (1 - kappa_r) y_t      a_t = f(y_t - r_t + bias)          without kappa_r: no r
//
// A task is as many samples as a vector has lanes: what a synapse reads is then one vector wherever it lies, and every
// weight a number for all lanes. Time is cut into chunks. What reads inputs is added up a neuron at a time through a
// chunk, its sums over steps in registers; what reads neurons, and the MLPs, run a step after the other. Backward, the
// steps leave the gradients of a chunk's sums behind, and then every neuron by itself adds up those of its weights.
#pragma once
#include "network_layout.h"
#include "surrogates.h"

namespace ELM_ISA {

constexpr double NETWORK_TANH_SCALE = 1.7159, NETWORK_TANH_SLOPE = 2.0 / 3.0;  // as TANH_SCALE and TANH_SLOPE of layout.h

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

template <class R, int BYTES> struct NetworkTask {
    typedef Batch<R, BYTES> B;
    typedef typename B::V V;
    static constexpr int L = B::L, STEPS = B::STEPS, BLOCK = B::BLOCK;
    const ElmNetwork &a;
    const NetworkShape &s;
    const Wiring<R> &w;
    const i64 index, first, samples;
    i64 longest;
    R length[L];  // lanes without a sample have no valid step

    NetworkTask(const ElmNetwork &args, const NetworkShape &shape, const Wiring<R> &wiring, i64 task)
        : a(args),
          s(shape),
          w(wiring),
          index(task),
          first(task * L),
          samples(a.batch - first < L ? a.batch - first : L),
          longest(0) {
        for (int lane = 0; lane < L; lane++) longest = valid(lane) > longest ? valid(lane) : longest;
    }
    i64 valid(i64 lane) const { return lane >= samples ? 0 : a.lengths ? a.lengths[first + lane] : a.num_steps; }
    i64 counted(i64 start) const { return longest - start < STEPS ? longest - start : STEPS; }
    // Steps of a chunk that are valid, a lane each.
    V remaining(i64 start) const {
        R left[L];
        for (int lane = 0; lane < L; lane++) {
            const i64 more = valid(lane) - start;
            left[lane] = R(more < 0 ? 0 : more < STEPS ? more : STEPS);
        }
        return B::at(left);
    }

    // What is kept: of every step, then of the start of every chunk; (step, neuron, vectors).
    static i64 kept_size(const ElmNetwork &a, const NetworkShape &s) {
        return s.n * L * (a.num_steps * s.kept() + (a.num_steps + STEPS - 1) / STEPS * s.start());
    }
    R *kept(i64 step) const { return (R *)a.saved + index * kept_size(a, s) + step * s.n * s.kept() * L; }
    R *started(i64 start) const { return kept(a.num_steps) + start / STEPS * s.n * s.start() * L; }

    // Rows of the samples, `width` entries each, to vectors and back.
    void read(R *to, const void *from, i64 width) const {
        for (i64 lane = 0; from && lane < samples; lane++)
            for (i64 k = 0; k < width; k++) to[k * L + lane] = ((const R *)from)[(first + lane) * width + k];
    }
    void write(void *to, const R *from, i64 width) const {
        for (i64 lane = 0; to && lane < samples; lane++)
            for (i64 k = 0; k < width; k++) ((R *)to)[(first + lane) * width + k] = from[k * L + lane];
    }

    // What arrives from outside in the steps of a chunk, (inputs, STEPS, L); `active`: whether an input holds anything.
    void arrivals(i64 start, i64 count, R *rows, unsigned char *active) const {
        std::memset(rows, 0, s.inputs * CHUNK_BYTES);
        std::memset(active, 0, s.inputs);
        for (i64 lane = 0; lane < samples; lane++) {
            const i64 sample = first + lane;
            const R *mask = a.input_mask ? (const R *)a.input_mask + sample * s.inputs : nullptr;
            for (i64 t = 0; t < count && start + t < valid(lane); t++) {
                R *to = rows + t * L + lane;
                const auto add = [&](i64 c, R value) ELM_LAMBDA {
                    to[c * STEPS * L] += mask ? value * mask[c] : value;
                    active[c] = 1;
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
    }

    // The same of what the layer itself sent a step before, which the forward pass has written.
    void fed_back(i64 start, i64 count, R *rows, unsigned char *active) const {
        std::memset(rows, 0, s.n * CHUNK_BYTES);
        std::memset(active, 0, s.n);
        for (i64 lane = 0; lane < samples; lane++) {
            const i64 sample = first + lane;
            const R *mask = a.recurrent_mask ? (const R *)a.recurrent_mask + sample * s.n : nullptr;
            for (i64 t = 0; t < count && start + t < valid(lane); t++) {
                const R *from = (const R *)a.a_0 + sample * s.n;
                if (start + t) from = (const R *)a.a + sample * a.a_batch + (start + t - 1) * a.a_time;
                each_entry(from, s.n, [&](i64 n) ELM_LAMBDA {
                    rows[(n * STEPS + t) * L + lane] = mask ? from[n] * mask[n] : from[n];
                    active[n] = 1;
                });
            }
        }
    }

    // Sums of the synapses that read inputs, (step, neuron, in), through a chunk.
    void sum_inputs(const R *rows, const unsigned char *active, i64 count, R *sums) const {
        for (i64 n = 0; n < s.n; n++)
            for (i64 j = 0; j < s.branches; j++) {
                const i64 *range = w.feed_begin + n * s.branches + j;
                for (i64 block = 0; block < count; block += BLOCK) {
                    V sum[BLOCK] = {};
                    for (i64 k = range[0]; k < range[1]; k++) {
                        if (!active[w.feed[k].source]) continue;
                        const R *row = rows + (w.feed[k].source * STEPS + block) * L;
                        const V weight = B::all(w.feed[k].weight);
#pragma GCC unroll 16
                        for (int t = 0; t < BLOCK; t++) sum[t] += weight * B::at(row + t * L);
                    }
                    R *to = sums + ((block * s.n + n) * s.in + j) * L;
#pragma GCC unroll 16
                    for (int t = 0; t < BLOCK; t++) B::put(to + t * s.n * s.in * L, sum[t]);
                }
            }
    }

    // What the layer holds between steps, and room to work in.
    struct Forward {
        R *rows, *sums, *m, *r, *b, *mask, *fed, *next, *last, *change, *emitted, *z, *h;
        unsigned char *active;
        static i64 vectors(const NetworkShape &s) {
            return (s.inputs + s.n * s.in + s.n) * STEPS + s.n * (s.d + s.branches + 6) + 2 * s.widest + 2 * (64 / 16);
        }
        static size_t bytes(const NetworkShape &s) { return vectors(s) * BYTES + s.inputs + 16 * 64; }
        Forward(const NetworkShape &s, Arena &arena) {
            rows = arena.take<R>(s.inputs * STEPS * L);
            sums = arena.take<R>(s.n * s.in * STEPS * L);
            emitted = arena.take<R>(s.n * STEPS * L);
            m = arena.take<R>(s.n * s.d * L);
            b = arena.take<R>(s.n * s.branches * L);
            R **of_neurons[] = {&r, &mask, &fed, &next, &last, &change};
            for (R **one : of_neurons) *one = arena.take<R>(s.n * L);
            z = arena.take<R>(s.widest * L + Lanes<R>::W);
            h = arena.take<R>(s.widest * L + Lanes<R>::W);
            active = arena.take<unsigned char>(s.inputs);
        }
    };

    i64 forward() const {
        Arena arena(Forward::bytes(s));
        if (!arena.base) return 1;
        Forward f(s, arena);
        read(f.last, a.a_0, s.n);
        read(f.m, a.m_0, s.n * s.d);
        if (s.trace) read(f.b, a.b_0, s.n * s.branches);
        if (s.high_pass) read(f.r, a.r_0, s.n);
        if (a.recurrent_mask) read(f.mask, a.recurrent_mask, s.n);
        for (i64 k = 0; k < s.n * L; k++) f.fed[k] = a.recurrent_mask ? f.last[k] * f.mask[k] : f.last[k];
        for (i64 start = 0; start < longest; start += STEPS) {
            const i64 count = counted(start);
            arrivals(start, count, f.rows, f.active);
            sum_inputs(f.rows, f.active, count, f.sums);
            if (a.saved) keep_start(f, started(start));
            const V left = remaining(start);
            for (i64 t = 0; t < count; t++) {
                for (i64 n = 0; n < s.n; n++) step(f, left, start, t, n);
                R *swapped = f.fed;
                f.fed = f.next;
                f.next = swapped;
            }
            for (i64 lane = 0; lane < samples; lane++)
                for (i64 t = 0; t < count; t++) {
                    R *to = (R *)a.a + (first + lane) * a.a_batch + (start + t) * a.a_time;
                    for (i64 n = 0; n < s.n; n++) to[n] = f.emitted[(t * s.n + n) * L + lane];
                }
        }
        for (i64 lane = 0; lane < samples; lane++)
            for (i64 t = longest; t < a.num_steps; t++)
                std::memset((R *)a.a + (first + lane) * a.a_batch + t * a.a_time, 0, s.n * sizeof(R));
        for (i64 k = 0; k < s.n * L; k++) f.change[k] /= R(s.d);
        write(a.a_last, f.last, s.n);
        write(a.m_last, f.m, s.n * s.d);
        write(a.change, f.change, s.n);
        if (s.trace) write(a.b_last, f.b, s.n * s.branches);
        if (s.high_pass) write(a.r_last, f.r, s.n);
        return 0;
    }

    void keep_start(const Forward &f, R *to) const {
        for (i64 n = 0; n < s.n; n++) {
            std::memcpy(to, f.m + n * s.d * L, s.d * BYTES);
            to += s.d * L;
            if (s.trace) std::memcpy(to, f.b + n * s.branches * L, s.branches * BYTES), to += s.branches * L;
            if (s.high_pass) std::memcpy(to, f.r + n * L, BYTES), to += L;
        }
    }

    // Step t of a chunk for one neuron.
    ELM_INLINE_MEMBER void step(const Forward &f, V left, i64 start, i64 t, i64 n) const {
        const auto running = left > B::all(R(t));
        const V zero = {};
        R *in = f.sums + (t * s.n + n) * s.in * L, *m = f.m + n * s.d * L;
        for (i64 k = w.loop_begin[n]; k < w.loop_begin[n + 1]; k++) {
            R *sum = in + w.loop[k].branch * L;
            B::put(sum, B::at(sum) + B::at(f.fed + w.loop[k].source * L) * w.loop[k].weight);
        }
        if (s.trace) {
            R *b = f.b + n * s.branches * L;
            const R *kappa_b = (const R *)a.kappa_b + n * s.branches;
            for (i64 j = 0; j < s.branches; j++) {
                const V before = B::at(b + j * L), after = before * kappa_b[j] + B::at(in + j * L);
                B::put(in + j * L, after);
                B::put(b + j * L, running ? after : before);
            }
        }
        const R *kappa_m = (const R *)a.kappa_m + n * s.d, *gain = (const R *)a.gain + n * s.d;
        const R *w_y = (const R *)a.w_y + n * s.d;
        for (i64 i = 0; i < s.d; i++) B::put(in + (s.branches + i) * L, B::at(m + i * L) * kappa_m[i]);
        R *keep = a.saved ? kept(start + t) + n * s.kept() * L : nullptr;
        const R *x = in;
        for (i64 l = 0; l < s.layers; l++) {
            const i64 width = a.width[l], reads = s.reads(a, l);
            product<R, BYTES>(w.transposed[l] + n * width * reads, width, (const R *)a.layer_bias[l] + n * width, x,
                              reads, f.z);
            if (l + 1 == s.layers) break;
            network_activate(a.activation, f.z, f.h, width * L);
            if (keep) std::memcpy(keep, f.z, width * BYTES), keep += width * L;
            x = f.h;
        }
        for (i64 k = 0; k < s.d * L; k += Lanes<R>::W)
            store(f.h + k, tanh_of(load(f.z + k) * all<R>(R(NETWORK_TANH_SLOPE))));
        V y = {}, change = {};
        for (i64 i = 0; i < s.d; i++) {
            const V o = B::at(f.z + i * L), tanh = B::at(f.h + i * L);
            const V after = B::at(in + (s.branches + i) * L) + tanh * (gain[i] * R(NETWORK_TANH_SCALE));
            change += o < zero ? -o : o;
            y += after * w_y[i];
            B::put(m + i * L, running ? after : B::at(m + i * L));
            if (keep) B::put(keep + i * L, tanh);
        }
        if (s.high_pass) {
            const R kappa_r = ((const R *)a.kappa_r)[n];
            const V before = B::at(f.r + n * L), after = before * kappa_r + y * (R(1) - kappa_r);
            B::put(f.r + n * L, running ? after : before);
            y -= after;
        }
        y += B::all(((const R *)a.bias)[n]);
        if (keep && s.kinked) B::put(keep + s.d * L, y);
        if (a.output == ELM_OUTPUT_RELU) y = y < zero ? zero : y;
        if (a.output == ELM_OUTPUT_SPIKE) y = y > zero ? B::all(R(1)) : zero;
        const V last = running ? y : B::at(f.last + n * L);
        B::put(f.emitted + (t * s.n + n) * L, running ? y : zero);
        B::put(f.last + n * L, last);
        B::put(f.next + n * L, a.recurrent_mask ? last * B::at(f.mask + n * L) : last);
        B::put(f.change + n * L, B::at(f.change + n * L) + (running ? change : zero));
    }

    // Backward: gradients carried from step to step, those of a chunk's sums, and room to work in. A row of `grads` is,
    // of one neuron and step: branches, kappa_m m_{t-1} (with what m_{t-1} is carried on with), the hidden layers' sums,
    // o, y and r.
    struct Backward {
        R *rows, *grads, *grad_x, *m, *r, *b, *mask, *held, *arrived, *of_a, *change, *bias, *gain, *of_output;
        R *seen, *column, *hidden, *z, *g, *local;
        unsigned char *active;
        i64 row;
        static i64 row_of(const NetworkShape &s) { return s.in + s.hidden + s.d + 1 + s.high_pass; }
        static size_t bytes(const NetworkShape &s) {
            i64 vectors = (2 * s.inputs + s.n + s.n * row_of(s) + s.n + s.in + 1 + s.widest) * STEPS;
            vectors += s.n * (2 * s.d + s.branches + 8) + 5 * s.widest + 4 * (64 / 16);
            return vectors * BYTES + s.sources + 24 * 64;
        }
        Backward(const NetworkShape &s, Arena &arena, bool wants_x) : row(row_of(s)) {
            rows = arena.take<R>(s.sources * STEPS * L);
            grads = arena.take<R>(s.n * row * STEPS * L);
            grad_x = wants_x ? arena.take<R>(s.inputs * STEPS * L) : nullptr;
            of_output = arena.take<R>(s.n * STEPS * L);
            m = arena.take<R>(s.n * s.d * L);
            gain = arena.take<R>(s.n * s.d * L);
            b = arena.take<R>(s.n * s.branches * L);
            R **of_neurons[] = {&r, &mask, &held, &arrived, &of_a, &change, &bias};
            for (R **one : of_neurons) *one = arena.take<R>(s.n * L);
            seen = arena.take<R>(s.in * STEPS * L);
            column = arena.take<R>(STEPS * L);
            hidden = arena.take<R>(s.widest * STEPS * L + Lanes<R>::W);
            z = arena.take<R>(s.widest * L + Lanes<R>::W);
            g = arena.take<R>(s.widest * L + Lanes<R>::W);
            local = arena.take<R>(3 * s.d * L);
            active = arena.take<unsigned char>(s.sources);
        }
    };

    i64 backward(R *sums, const NetworkParts &parts) const {
        Arena arena(Backward::bytes(s));
        if (!arena.base) return 1;
        const Backward f(s, arena, a.grad_x != nullptr);
        read(f.held, a.grad_a_last, s.n);
        read(f.m, a.grad_m_last, s.n * s.d);
        if (s.trace) read(f.b, a.grad_b_last, s.n * s.branches);
        if (s.high_pass) read(f.r, a.grad_r_last, s.n);
        if (a.recurrent_mask) read(f.mask, a.recurrent_mask, s.n);
        read(f.change, a.grad_change, s.n);
        for (i64 k = 0; k < s.n * L; k++) f.change[k] /= R(s.d);
        for (i64 start = (longest - 1) / STEPS * STEPS; start >= 0 && longest; start -= STEPS) {
            const i64 count = counted(start);
            const V left = remaining(start);
            read_output(f, start, count);
            for (i64 t = count - 1; t >= 0; t--) {
                receive(f, left, t);
                for (i64 n = 0; n < s.n; n++) step_backward(f, left, start, t, n);
            }
            arrivals(start, count, f.rows, f.active);
            fed_back(start, count, f.rows + s.inputs * STEPS * L, f.active + s.inputs);
            if (f.grad_x) std::memset(f.grad_x, 0, s.inputs * CHUNK_BYTES);
            for (i64 n = 0; n < s.n; n++) learn(f, left, start, count, n, sums, parts);
            if (f.grad_x) write_grad_x(f.grad_x, start, count);
        }
        for (i64 lane = 0; a.grad_x && lane < samples; lane++)
            std::memset((R *)a.grad_x + ((first + lane) * a.num_steps + longest) * s.inputs, 0,
                        (a.num_steps - longest) * s.inputs * sizeof(R));
        for (i64 n = 0; n < s.n; n++) {
            sums[parts.begin[NetworkParts::BIAS] + n] += B::sum(B::at(f.bias + n * L));
            for (i64 i = n * s.d; i < (n + 1) * s.d; i++)
                sums[parts.begin[NetworkParts::GAIN] + i] += B::sum(B::at(f.gain + i * L)) * R(NETWORK_TANH_SCALE);
            B::put(f.held + n * L, B::at(f.held + n * L) + of_arrived(f, n));
        }
        write(a.grad_a_0, f.held, s.n);
        write(a.grad_m_0, f.m, s.n * s.d);
        if (s.trace) write(a.grad_b_0, f.b, s.n * s.branches);
        if (s.high_pass) write(a.grad_r_0, f.r, s.n);
        return 0;
    }

    // The gradient that came for the output, (step, neuron).
    void read_output(const Backward &f, i64 start, i64 count) const {
        for (i64 lane = 0; a.grad_a && lane < samples; lane++)
            for (i64 t = 0; t < count && start + t < valid(lane); t++) {
                const R *from = (const R *)a.grad_a + (first + lane) * a.grad_batch + (start + t) * a.grad_time;
                for (i64 n = 0; n < s.n; n++) f.of_output[(t * s.n + n) * L + lane] = from[n];
            }
    }

    V of_arrived(const Backward &f, i64 n) const {
        const V arrived = B::at(f.arrived + n * L);
        return a.recurrent_mask ? arrived * B::at(f.mask + n * L) : arrived;
    }

    // The gradient of a_t: of the output and of what read it one step later; a sample that is over holds what it has.
    void receive(const Backward &f, V left, i64 t) const {
        const auto running = left > B::all(R(t));
        const V zero = {};
        for (i64 n = 0; n < s.n; n++) {
            const V later = B::at(f.held + n * L) + of_arrived(f, n);
            B::put(f.of_a + n * L, running ? later + B::at(f.of_output + (t * s.n + n) * L) : zero);
            B::put(f.held + n * L, running ? zero : later);
            B::put(f.arrived + n * L, zero);
        }
    }

    // The gradient of the output's input, from that of the output.
    V through_output(V grad, V input) const {
        const V zero = {};
        if (a.output == ELM_OUTPUT_RELU) return input > zero ? grad : zero;
        Vector<R> wide = {};
        __builtin_memcpy(&wide, &input, BYTES);
        wide = slope_of<R>(wide, a.surrogate, a.setting);
        __builtin_memcpy(&input, &wide, BYTES);
        return grad * input;
    }

    ELM_INLINE_MEMBER void step_backward(const Backward &f, V left, i64 start, i64 t, i64 n) const {
        const auto running = left > B::all(R(t));
        const V zero = {};
        const R *keep = kept(start + t) + n * s.kept() * L, *tanh = keep + s.hidden * L;
        R *grads = f.grads + (n * STEPS + t) * f.row * L, *of_o = grads + (s.in + s.hidden) * L;
        V of_y = B::at(f.of_a + n * L);
        if (s.kinked) of_y = through_output(of_y, B::at(tanh + s.d * L));
        B::put(f.bias + n * L, B::at(f.bias + n * L) + of_y);
        if (s.high_pass) {
            const R kappa_r = ((const R *)a.kappa_r)[n];
            const V carried = B::at(f.r + n * L), of_r = running ? carried - of_y : zero;
            of_y += of_r * (R(1) - kappa_r);
            B::put(f.r + n * L, running ? of_r * kappa_r : carried);
            B::put(of_o + (s.d + 1) * L, of_r);
        }
        B::put(of_o + s.d * L, of_y);
        const R *kappa_m = (const R *)a.kappa_m + n * s.d, *gain = (const R *)a.gain + n * s.d;
        const R *w_y = (const R *)a.w_y + n * s.d;
        R *m = f.m + n * s.d * L, *of_gain = f.gain + n * s.d * L;
        const V one = B::all(R(1)), change = B::at(f.change + n * L);
        for (i64 i = 0; i < s.d; i++) {
            const V th = B::at(tanh + i * L), of_m = B::at(m + i * L) + of_y * w_y[i];
            const V of_size = th > zero ? change : th < zero ? -change : zero;
            const V through = of_m * (one - th * th) * (gain[i] * R(NETWORK_TANH_SCALE * NETWORK_TANH_SLOPE));
            B::put(m + i * L, of_m);
            B::put(of_gain + i * L, B::at(of_gain + i * L) + (running ? of_m * th : zero));
            B::put(of_o + i * L, running ? through + of_size : zero);
        }
        const R *above = of_o;
        i64 at = s.in + s.hidden, unit = s.hidden;
        for (i64 l = s.layers - 1; l > 0; l--) {
            const i64 width = a.width[l - 1];
            at -= width;
            unit -= width;
            product<R, BYTES>((const R *)a.weight[l] + n * s.weights(a, l), width, nullptr, above, a.width[l], f.g);
            std::memcpy(f.z, keep + unit * L, width * BYTES);
            network_slope(a.activation, f.z, f.g, width * L);
            std::memcpy(grads + at * L, f.g, width * BYTES);
            above = grads + at * L;
        }
        product<R, BYTES>((const R *)a.weight[0] + n * s.weights(a, 0), s.in, nullptr, above, a.width[0], grads);
        for (i64 i = 0; i < s.d; i++) {
            const V of_m = B::at(m + i * L), of_decayed = B::at(grads + (s.branches + i) * L) + of_m;
            B::put(grads + (s.branches + i) * L, running ? of_decayed : zero);
            B::put(m + i * L, running ? of_decayed * kappa_m[i] : of_m);
        }
        if (s.trace) {
            R *b = f.b + n * s.branches * L;
            const R *kappa_b = (const R *)a.kappa_b + n * s.branches;
            for (i64 j = 0; j < s.branches; j++) {
                const V carried = B::at(b + j * L), of_b = B::at(grads + j * L) + carried;
                B::put(grads + j * L, running ? of_b : zero);
                B::put(b + j * L, running ? of_b * kappa_b[j] : carried);
            }
        }
        for (i64 k = w.loop_begin[n]; k < w.loop_begin[n + 1]; k++) {
            R *to = f.arrived + w.loop[k].source * L;
            B::put(to, B::at(to) + B::at(grads + w.loop[k].branch * L) * w.loop[k].weight);
        }
    }

    // The gradients of one neuron's weights and constants through a chunk, from what its steps left behind.
    void learn(const Backward &f, V left, i64 start, i64 count, i64 n, R *sums, const NetworkParts &parts) const {
        const R *grads = f.grads + n * STEPS * f.row * L, *of_o = grads + (s.in + s.hidden) * L;
        const R *begin = started(start) + n * s.start() * L;
        remember(f, left, start, count, n, begin, grads, sums, parts);
        synapses(f, count, n, begin + s.d * L, grads, sums, parts);
        i64 at = s.in, unit = 0;
        const R *read = f.seen;
        for (i64 l = 0; l < s.layers; l++) {
            const i64 width = a.width[l], reads = s.reads(a, l);
            const R *of_sums = l + 1 == s.layers ? of_o : grads + at * L;
            outer<R, BYTES>(of_sums, f.row * L, width, read, reads * L, reads, count,
                            sums + parts.begin[NetworkParts::WEIGHT + l] + n * width * reads);
            R *of_bias = sums + parts.begin[NetworkParts::LAYER_BIAS + l] + n * width;
            for (i64 k = 0; k < width; k++) {
                V sum = {};
                for (i64 t = 0; t < count; t++) sum += B::at(of_sums + (t * f.row + k) * L);
                of_bias[k] += B::sum(sum);
            }
            if (l + 1 == s.layers) break;
            for (i64 t = 0; t < count; t++) {
                std::memcpy(f.z, kept(start + t) + (n * s.kept() + unit) * L, width * BYTES);
                network_activate(a.activation, f.z, f.hidden + t * width * L, width * L);
            }
            read = f.hidden;
            at += width;
            unit += width;
        }
    }

    // Memory and running mean again, with the gradients of what they meet; kappa_m m_{t-1} as the MLP reads it.
    ELM_INLINE_MEMBER void remember(const Backward &f, V left, i64 start, i64 count, i64 n, const R *begin,
                                    const R *grads, R *sums, const NetworkParts &parts) const {
        const R *kappa_m = (const R *)a.kappa_m + n * s.d, *gain = (const R *)a.gain + n * s.d;
        const R *w_y = (const R *)a.w_y + n * s.d;
        R *m = f.local, *of_kappa = m + s.d * L, *of_w_y = of_kappa + s.d * L;
        std::memcpy(m, begin, s.d * BYTES);
        std::memset(of_kappa, 0, 2 * s.d * BYTES);
        V r = s.high_pass ? B::at(begin + (s.start() - 1) * L) : V{}, of_kappa_r = {};
        const R kappa_r = s.high_pass ? ((const R *)a.kappa_r)[n] : R(0);
        for (i64 t = 0; t < count; t++) {
            const auto running = left > B::all(R(t));
            const R *row = grads + t * f.row * L, *of_y = row + (s.in + s.hidden + s.d) * L;
            const R *tanh = kept(start + t) + (n * s.kept() + s.hidden) * L;
            V y = {};
            for (i64 i = 0; i < s.d; i++) {
                const V before = B::at(m + i * L), decayed = before * kappa_m[i];
                const V after = decayed + B::at(tanh + i * L) * (gain[i] * R(NETWORK_TANH_SCALE));
                B::put(f.seen + (t * s.in + s.branches + i) * L, decayed);
                B::put(of_kappa + i * L, B::at(of_kappa + i * L) + B::at(row + (s.branches + i) * L) * before);
                B::put(of_w_y + i * L, B::at(of_w_y + i * L) + B::at(of_y) * after);
                B::put(m + i * L, running ? after : before);
                y += after * w_y[i];
            }
            if (s.high_pass) {
                of_kappa_r += B::at(of_y + L) * (r - y);
                r = running ? r * kappa_r + y * (R(1) - kappa_r) : r;
            }
        }
        for (i64 i = 0; i < s.d; i++) {
            sums[parts.begin[NetworkParts::KAPPA_M] + n * s.d + i] += B::sum(B::at(of_kappa + i * L));
            sums[parts.begin[NetworkParts::W_Y] + n * s.d + i] += B::sum(B::at(of_w_y + i * L));
        }
        if (s.high_pass) sums[parts.begin[NetworkParts::KAPPA_R] + n] += B::sum(of_kappa_r);
    }

    // Branches again, with the gradients of what their synapses read and are.
    ELM_INLINE_MEMBER void synapses(const Backward &f, i64 count, i64 n, const R *traces, const R *grads, R *sums,
                                    const NetworkParts &parts) const {
        const R scale = R(a.input_scale), *w_s = (const R *)a.w_s + n * s.synapses;
        const int64_t *source = a.index + n * s.synapses;
        R *of_w_s = sums + parts.begin[NetworkParts::W_S] + n * s.synapses;
        for (i64 j = 0; j < s.branches; j++) {
            for (i64 t = 0; t < count; t++) B::put(f.column + t * L, B::at(grads + (t * f.row + j) * L));
            for (i64 t = count; t < STEPS; t++) B::put(f.column + t * L, V{});
            for (i64 block = 0; block < count; block += BLOCK) {
                V sum[BLOCK] = {};
                const R *column = f.column + block * L;
                for (i64 k = j * a.num_synapse; k < (j + 1) * a.num_synapse; k++) {
                    if (!f.active[source[k]]) continue;
                    const R *row = f.rows + (source[k] * STEPS + block) * L;
                    const V weight = B::all(w_s[k] * scale);
                    V of_weight[2] = {};
#pragma GCC unroll 16
                    for (int t = 0; t < BLOCK; t++) {
                        const V x = B::at(row + t * L);
                        sum[t] += weight * x;
                        of_weight[t & 1] += B::at(column + t * L) * x;
                    }
                    of_w_s[k] += B::sum(of_weight[0] + of_weight[1]) * scale;
                }
                const i64 last = count - block < BLOCK ? count - block : BLOCK;
                for (i64 t = 0; t < last; t++) B::put(f.seen + ((block + t) * s.in + j) * L, sum[t]);
            }
            if (s.trace) {
                const R kappa_b = ((const R *)a.kappa_b)[n * s.branches + j];
                V b = B::at(traces + j * L), of_kappa = {};
                for (i64 t = 0; t < count; t++) {
                    R *sum = f.seen + (t * s.in + j) * L;
                    of_kappa += B::at(f.column + t * L) * b;
                    b = b * kappa_b + B::at(sum);
                    B::put(sum, b);
                }
                sums[parts.begin[NetworkParts::KAPPA_B] + n * s.branches + j] += B::sum(of_kappa);
            }
            if (!f.grad_x) continue;
            const i64 *range = w.feed_begin + n * s.branches + j;
            for (i64 k = range[0]; k < range[1]; k++) {
                R *to = f.grad_x + w.feed[k].source * STEPS * L;
                const V weight = B::all(w.feed[k].weight);
#pragma GCC unroll 8
                for (int t = 0; t < STEPS; t++) B::put(to + t * L, B::at(to + t * L) + weight * B::at(f.column + t * L));
            }
        }
    }

    void write_grad_x(const R *grad_x, i64 start, i64 count) const {
        for (i64 lane = 0; lane < samples; lane++) {
            const R *mask = a.input_mask ? (const R *)a.input_mask + (first + lane) * s.inputs : nullptr;
            for (i64 t = 0; t < count; t++) {
                R *to = (R *)a.grad_x + ((first + lane) * a.num_steps + start + t) * s.inputs;
                for (i64 c = 0; c < s.inputs; c++) {
                    const R grad = grad_x[(c * STEPS + t) * L + lane];
                    to[c] = mask ? grad * mask[c] : grad;
                }
            }
        }
    }
};

// A task with vectors of as many lanes as the call names.
template <class R, int BYTES = VECTOR_BYTES>
static i64 network_task(const ElmNetwork &a, const NetworkShape &s, const Wiring<R> &w, i64 task, R *sums,
                        const NetworkParts *parts) {
    if (a.lanes * (i64)sizeof(R) == BYTES) {
        const NetworkTask<R, BYTES> one(a, s, w, task);
        return sums ? one.backward(sums, *parts) : one.forward();
    }
    if constexpr (BYTES > 16) return network_task<R, BYTES / 2>(a, s, w, task, sums, parts);
    return 1;
}

template <class R, int BYTES = VECTOR_BYTES> static i64 network_kept(const ElmNetwork &a, const NetworkShape &s) {
    if (a.lanes * (i64)sizeof(R) == BYTES) return NetworkTask<R, BYTES>::kept_size(a, s);
    if constexpr (BYTES > 16) return network_kept<R, BYTES / 2>(a, s);
    return 0;
}

template <class R> static i64 network_saved(const ElmNetwork *a) {
    return (a->batch + a->lanes - 1) / a->lanes * network_kept<R>(*a, NetworkShape(*a));
}

// The vectors that take the least time: a task of the widest takes about 1.6 times that of half as wide ones, which
// takes hardly longer than that of a quarter, and tasks share the threads.
template <class R> static i64 network_lanes(i64 batch, i64 threads) {
    i64 best = 0;
    double least = 0.0;
    for (int bytes = 16; bytes <= VECTOR_BYTES; bytes *= 2) {
        const i64 lanes = bytes / sizeof(R), tasks = (batch + lanes - 1) / lanes;
        const double time = (double)((tasks + threads - 1) / threads) * (bytes == 16 ? 1.0 : bytes == 32 ? 1.1 : 1.7);
        if (!best || time < least) best = lanes, least = time;
    }
    return best;
}

template <class R> static void network_forward(const ElmNetwork *a, ElmShare *share) {
    const NetworkShape s(*a);
    Arena arena(Wiring<R>::bytes(*a, s));
    share->status = !arena.base;
    if (share->status) return;
    const Wiring<R> w(*a, s, arena);
    for (i64 task = share->first; task < share->last; task++)
        share->status |= network_task<R>(*a, s, w, task, nullptr, nullptr);
}

template <class R> static void network_backward(const ElmNetwork *a, ElmShare *share) {
    const NetworkShape s(*a);
    const NetworkParts parts(*a, s);
    Arena arena(Wiring<R>::bytes(*a, s));
    share->status = !arena.base;
    void *sums = nullptr;
    const size_t bytes = (size_t)parts.begin[NetworkParts::COUNT] * sizeof(R);
    if (share->status || posix_memalign(&sums, 64, bytes)) {
        share->status = 1;
        return;
    }
    std::memset(sums, 0, bytes);
    share->scratch = sums;
    const Wiring<R> w(*a, s, arena);
    for (i64 task = share->first; task < share->last; task++)
        share->status |= network_task<R>(*a, s, w, task, (R *)sums, &parts);
}

// The threads' sums in their order; returns 1 where one of them lacked memory.
template <class R> static i64 network_reduce(const ElmNetwork *a, const ElmShare *share, i64 num_share) {
    const NetworkShape s(*a);
    const NetworkParts parts(*a, s);
    i64 lacking = 0;
    for (i64 k = 0; k < num_share; k++) lacking |= share[k].status;
    R *total = (R *)share[0].scratch;
    for (i64 k = 1; k < num_share && !lacking; k++)
        for (i64 j = 0; j < parts.begin[NetworkParts::COUNT]; j++) total[j] += ((const R *)share[k].scratch)[j];
    for (int k = 0; k < NetworkParts::COUNT && !lacking; k++)
        if (parts.to[k])
            std::memcpy(parts.to[k], total + parts.begin[k], (parts.begin[k + 1] - parts.begin[k]) * sizeof(R));
    for (i64 k = 0; k < num_share; k++) free(share[k].scratch);
    return lacking;
}

}  // namespace ELM_ISA
