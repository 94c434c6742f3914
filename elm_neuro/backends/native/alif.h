// A layer of adaptive LIF neurons over a sequence, forward and backward:
//
//     v_t = beta v_{t-1} + [no spike in the last L steps] (i_t + W_rec s_{t-L-1})
//     s_t = [v_t > 1 + b a_{t-1}]      a_t = p a_{t-1} + s_t      a spike sets v to 0
//
// A task is a sample. No spike of the layer reaches the layer within L + 1 steps, so that time is cut into chunks of at
// most that many: what arrives in a chunk is added up first, through the few spikes that there are; then every neuron
// runs through the chunk by itself, a vector of them at a time, its membrane, adaptation and rest in registers.
#pragma once
#include "filter.h"
#include "surrogates.h"

namespace ELM_ISA {

// Sizes of a call, padded to whole vectors, and where things lie.
template <class R> struct AlifShape {
    i64 n, np, chunk, history;  // history: rows of spikes that a state remembers, L + 1
    explicit AlifShape(const ElmAlif &a)
        : n(a.num_neuron), np(padded<R>(a.num_neuron)), chunk(a.chunk), history(a.latency + 1) {}
    i64 chunks(const ElmAlif &a) const { return (a.num_steps + chunk - 1) / chunk; }
    // saved: the membrane of every step before its reset, then membrane, adaptation and rest before every chunk
    R *membrane(const ElmAlif &a, i64 sample) const { return (R *)a.saved + sample * a.num_steps * np; }
    R *start(const ElmAlif &a, i64 sample, i64 index) const {
        return (R *)a.saved + (a.batch * a.num_steps + (sample * chunks(a) + index) * 3) * np;
    }
    i64 sums(const ElmAlif &a) const {  // a thread's gradients: bias, beta, p, b, W_rec by sender, the table
        return (4 + (a.w_rec ? n : 0) + (a.grad_table ? a.num_input : 0)) * np;
    }
};

// The layer's constants, padded with zeros.
template <class R> struct AlifLayer {
    R *bias, *beta, *p, *b, *by_sender, *by_receiver;  // W_rec both ways; the second for spikes that pass a gradient
    static size_t bytes(const ElmAlif &a, const AlifShape<R> &s) {
        return (size_t)(4 + (a.w_rec ? 2 * s.n : 0)) * s.np * sizeof(R);
    }
    AlifLayer(const ElmAlif &a, const AlifShape<R> &s, Arena &arena) {
        R **rows[] = {&bias, &beta, &p, &b};
        const void *from[] = {a.bias, a.beta, a.p, a.b};
        for (int k = 0; k < 4; k++) {
            *rows[k] = arena.take<R>(s.np);
            if (from[k]) copy_row(*rows[k], (const R *)from[k], s.n);
        }
        by_sender = by_receiver = nullptr;
        if (!a.w_rec) return;
        by_sender = arena.take<R>(s.n * s.np);
        by_receiver = arena.take<R>(s.n * s.np);
        for (i64 to = 0; to < s.n; to++) {
            copy_row(by_receiver + to * s.np, (const R *)a.w_rec + to * s.n, s.n);
            for (i64 from = 0; from < s.n; from++)
                by_sender[from * s.np + to] = ((const R *)a.w_rec)[to * s.n + from];
        }
    }
};

template <class R> ELM_INLINE i64 alif_length(const ElmAlif &a, i64 sample) {
    return a.lengths ? a.lengths[sample] : a.num_steps;
}

// The spikes that reach the layer in step t: an output of L + 1 steps ago, or of before the sequence; null for none.
template <class R> ELM_INLINE const R *alif_arriving(const ElmAlif &a, const AlifShape<R> &s, i64 sample, i64 t) {
    if (t >= s.history)
        return (const R *)a.spikes + sample * a.spikes_batch + (t - s.history) * a.spikes_time;
    return a.s_0 ? (const R *)a.s_0 + (sample * s.history + t) * s.n : nullptr;
}

template <class R> ELM_INLINE void alif_add(R *to, const R *from, i64 np) {
    for (i64 j = 0; j < np; j += Lanes<R>::W) store(to + j, load(to + j) + load(from + j));
}

template <class R> ELM_INLINE Steps<R> alif_steps(const ElmAlif &a, const AlifShape<R> &s, i64 sample, i64 start,
                                                  i64 count) {
    Steps<R> steps = {};
    steps.row = sample * a.num_steps + start;
    steps.count = steps.arriving = count;
    return steps;
}

// What arrives in steps `start` to `start + count`, from outside and from the layer, with the bias, (count, np).
template <class R>
ELM_INLINE void alif_currents(const ElmAlif &a, const AlifShape<R> &s, const AlifLayer<R> &w, i64 sample, i64 start,
                              i64 count, R *current, R *scratch) {
    constexpr int W = Lanes<R>::W;
    const Arrivals<R> events = {a.begin,   a.end, a.channel, (const R *)a.value, (const R *)a.table,
                                nullptr,   s.np,  a.wide != 0};
    Steps<R> steps = alif_steps(a, s, sample, start, count);
    steps.bias = w.bias;
    steps.state = scratch;
    steps.width = s.n;
    steps.in = a.dense ? (const R *)a.dense + sample * a.dense_batch + start * a.dense_time : nullptr;
    steps.in_row = a.dense_time;
    steps.out = current;
    steps.out_row = steps.out_width = s.np;
    integrate(events, steps, 0, s.n, false);
    if (Lanes<R>::PAD > W)  // vectors beyond the last one that holds a neuron
        for (i64 t = 0; t < count; t++)
            for (i64 j = (s.n + W - 1) / W * W; j < s.np; j += W) store(current + t * s.np + j, Vector<R>{});
    if (!a.w_rec) return;
    for (i64 t = 0; t < count; t++) {
        const R *arriving = alif_arriving<R>(a, s, sample, start + t);
        if (arriving)
            each_entry(arriving, s.n,
                      [&](i64 from) ELM_LAMBDA { alif_add(current + t * s.np, w.by_sender + from * s.np, s.np); });
    }
}

// A neuron's step: whether it fires, and what it carries on; `current` comes unmasked.
template <class R> struct AlifLane {
    Vector<R> v, a, rest;
    // Returns the membrane before the reset.
    ELM_INLINE_MEMBER Vector<R> run(Vector<R> current, Vector<R> beta, Vector<R> p, Vector<R> b, R latency,
                                    bool adaptive, Vector<R> &distance) {
        const Vector<R> zero = {}, membrane = beta * v + (rest > zero ? zero : current);
        after(membrane, p, b, latency, adaptive, distance);
        return membrane;
    }
    // The same from the membrane: what a backward pass knows.
    ELM_INLINE_MEMBER void after(Vector<R> membrane, Vector<R> p, Vector<R> b, R latency, bool adaptive,
                                 Vector<R> &distance) {
        const Vector<R> zero = {}, one = all<R>(R(1));
        distance = membrane - (adaptive ? b * a + one : one);
        const auto fires = distance > zero;
        v = fires ? zero : membrane;
        if (adaptive) a = p * a + (fires ? one : zero);
        const Vector<R> less = rest - one;
        rest = fires ? all<R>(latency) : less > zero ? less : zero;
    }
};

template <class R>
static i64 alif_forward_sample(const ElmAlif &a, const AlifShape<R> &s, const AlifLayer<R> &w, i64 sample) {
    constexpr int W = Lanes<R>::W;
    const i64 length = alif_length<R>(a, sample), np = s.np;
    const R latency = R(a.latency);
    const bool adaptive = a.b != nullptr;
    Arena arena((size_t)(4 + s.chunk) * np * sizeof(R));
    if (!arena.base) return 1;
    R *v = arena.take<R>(np), *ad = arena.take<R>(np), *rest = arena.take<R>(np), *scratch = arena.take<R>(np);
    R *current = arena.take<R>(s.chunk * np);
    if (a.v_0) copy_row(v, (const R *)a.v_0 + sample * s.n, s.n);
    if (a.a_0) copy_row(ad, (const R *)a.a_0 + sample * s.n, s.n);
    if (a.s_0)  // a spike `history - k` steps ago keeps its neuron at rest in the next k steps
        for (i64 k = 0; k < s.history; k++)
            for (i64 j = 0; j < s.n; j++) {
                const R spike = ((const R *)a.s_0)[(sample * s.history + k) * s.n + j];
                if (spike == R(1))
                    rest[j] = R(k);
                else if (spike != R(0))
                    return 2;
            }
    R *spikes = (R *)a.spikes + sample * a.spikes_batch;
    for (i64 start = 0; start < length; start += s.chunk) {
        const i64 count = length - start < s.chunk ? length - start : s.chunk;
        if (a.saved) {
            R *to = s.start(a, sample, start / s.chunk);
            std::memcpy(to, v, np * sizeof(R));
            std::memcpy(to + np, ad, np * sizeof(R));
            std::memcpy(to + 2 * np, rest, np * sizeof(R));
        }
        alif_currents(a, s, w, sample, start, count, current, scratch);
        R *membrane = a.saved ? s.membrane(a, sample) + start * np : nullptr;
        for (i64 c = 0; c < s.n; c += 2 * W) {  // two vectors: a step's chain of dependent operations is long
            const bool pair = c + W < np;
            const i64 d = pair ? c + W : c;  // where there is one only, it is run twice and written once
            AlifLane<R> x = {load(v + c), load(ad + c), load(rest + c)}, y = {load(v + d), load(ad + d), load(rest + d)};
            const Vector<R> zero = {}, one = all<R>(R(1));
            const Vector<R> beta_x = load(w.beta + c), p_x = load(w.p + c), b_x = load(w.b + c);
            const Vector<R> beta_y = load(w.beta + d), p_y = load(w.p + d), b_y = load(w.b + d);
            for (i64 t = 0; t < count; t++) {
                Vector<R> dx, dy;
                const Vector<R> m_x = x.run(load(current + t * np + c), beta_x, p_x, b_x, latency, adaptive, dx);
                const Vector<R> m_y = y.run(load(current + t * np + d), beta_y, p_y, b_y, latency, adaptive, dy);
                R *to = spikes + (start + t) * a.spikes_time;
                store_upto(to + c, dx > zero ? one : zero, s.n - c);
                if (d > c && d < s.n) store_upto(to + d, dy > zero ? one : zero, s.n - d);
                if (membrane) {
                    store(membrane + t * np + c, m_x);
                    if (d > c) store(membrane + t * np + d, m_y);
                }
            }
            store(v + c, x.v), store(ad + c, x.a), store(rest + c, x.rest);
            if (d > c) store(v + d, y.v), store(ad + d, y.a), store(rest + d, y.rest);
        }
    }
    for (i64 t = length; t < a.num_steps; t++) std::memset(spikes + t * a.spikes_time, 0, s.n * sizeof(R));
    copy_row((R *)a.v_last + sample * s.n, v, s.n);
    copy_row((R *)a.a_last + sample * s.n, ad, s.n);
    for (i64 k = 0; k < s.history; k++) {
        R *to = (R *)a.s_last + (sample * s.history + k) * s.n;
        const R *from = alif_arriving<R>(a, s, sample, length + k);
        if (from)
            std::memcpy(to, from, s.n * sizeof(R));
        else
            std::memset(to, 0, s.n * sizeof(R));
    }
    return 0;
}

// A thread's sums of the gradients.
template <class R> struct AlifSums {
    R *bias, *beta, *p, *b, *w_rec, *table;
    AlifSums(const ElmAlif &a, const AlifShape<R> &s, R *base)
        : bias(base),
          beta(base + s.np),
          p(base + 2 * s.np),
          b(base + 3 * s.np),
          w_rec(a.w_rec ? base + 4 * s.np : nullptr),
          table(a.grad_table ? base + (4 + (a.w_rec ? s.n : 0)) * s.np : nullptr) {}
};

// One vector of neurons backward through a chunk. In the words of the head of this file: `dv` is the gradient of the
// membrane after a step, `da` that of its adaptation.
template <class R>
ELM_INLINE void alif_column_backward(const ElmAlif &a, const AlifShape<R> &s, const AlifLayer<R> &w,
                                     const AlifSums<R> &sum, const R *start, const R *membrane, const R *grad_spikes,
                                     const R *extra, i64 count, i64 c, R *dv_row, R *da_row, R *d_current) {
    constexpr int W = Lanes<R>::W;
    const i64 np = s.np;
    const Vector<R> zero = {}, beta = load(w.beta + c), p = load(w.p + c), b = load(w.b + c);
    const bool adaptive = a.b != nullptr, through_reset = !a.detach_reset;
    const i64 left = s.n - c;
    R distances[ELM_ALIF_CHUNK * W], adaptation[ELM_ALIF_CHUNK * W], before[ELM_ALIF_CHUNK * W], resting[ELM_ALIF_CHUNK * W];
    AlifLane<R> lane = {load(start + c), load(start + np + c), load(start + 2 * np + c)};
    for (i64 t = 0; t < count; t++) {  // what the forward pass did not keep
        Vector<R> distance;
        store(adaptation + t * W, lane.a);
        store(before + t * W, lane.v);
        store(resting + t * W, lane.rest);
        lane.after(load(membrane + t * np + c), p, b, R(a.latency), adaptive, distance);
        store(distances + t * W, distance);
    }
    Vector<R> dv = load(dv_row + c), da = load(da_row + c);
    Vector<R> d_bias = load(sum.bias + c), d_beta = load(sum.beta + c), d_p = load(sum.p + c), d_b = load(sum.b + c);
    for (i64 t = count - 1; t >= 0; t--) {
        const Vector<R> distance = load(distances + t * W), m = load(membrane + t * np + c);
        Vector<R> ds = grad_spikes && left > 0 ? load_upto(grad_spikes + t * a.grad_time + c, left) : zero;
        if (extra) ds += load(extra + t * np + c);
        if (adaptive) ds += da;
        if (through_reset) ds -= m * dv;
        const Vector<R> dx = ds * slope_of<R>(distance, a.surrogate, a.setting);
        const Vector<R> dm = dx + (distance > zero ? zero : dv);
        if (adaptive) {
            const Vector<R> earlier = load(adaptation + t * W);
            d_b -= dx * earlier;
            d_p += da * earlier;
            da = p * da - b * dx;
        }
        const Vector<R> arrives = load(resting + t * W) > zero ? zero : dm;
        d_bias += arrives;
        d_beta += dm * load(before + t * W);
        store(d_current + t * np + c, arrives);
        dv = beta * dm;
    }
    store(dv_row + c, dv), store(da_row + c, da);
    store(sum.bias + c, d_bias), store(sum.beta + c, d_beta), store(sum.p + c, d_p), store(sum.b + c, d_b);
}

template <class R>
static i64 alif_backward_sample(const ElmAlif &a, const AlifShape<R> &s, const AlifLayer<R> &w, i64 sample,
                                const AlifSums<R> &sum) {
    constexpr int W = Lanes<R>::W;
    const i64 length = alif_length<R>(a, sample), np = s.np;
    const bool fed_back = a.w_rec && !a.detach_recurrent;
    const i64 kept = fed_back || a.grad_s_last ? length + s.history : 0;
    Arena arena((size_t)(3 + s.chunk + kept) * np * sizeof(R));
    if (!arena.base) return 1;
    R *dv = arena.take<R>(np), *da = arena.take<R>(np), *scratch = arena.take<R>(np);
    R *d_current = arena.take<R>(s.chunk * np);
    // further gradients of the spikes of step t - history in row t: what the state remembers, what is fed back
    R *extra = kept ? arena.take<R>(kept * np) : nullptr;
    if (a.grad_v_last) copy_row(dv, (const R *)a.grad_v_last + sample * s.n, s.n);
    if (a.grad_a_last) copy_row(da, (const R *)a.grad_a_last + sample * s.n, s.n);
    if (a.grad_s_last)
        for (i64 k = 0; k < s.history; k++)
            copy_row(extra + (length + k) * np, (const R *)a.grad_s_last + (sample * s.history + k) * s.n, s.n);
    const R *membrane = s.membrane(a, sample);
    const R *grad = a.grad_spikes ? (const R *)a.grad_spikes + sample * a.grad_batch : nullptr;
    const Arrivals<R> events = {a.begin, a.end, a.channel, (const R *)a.value, nullptr, sum.table, np, a.wide != 0};
    for (i64 start = (length - 1) / s.chunk * s.chunk; start >= 0 && length; start -= s.chunk) {
        const i64 count = length - start < s.chunk ? length - start : s.chunk;
        for (i64 c = 0; c < s.n; c += W)
            alif_column_backward(a, s, w, sum, s.start(a, sample, start / s.chunk), membrane + start * np,
                                 grad ? grad + start * a.grad_time : nullptr,
                                 extra ? extra + (start + s.history) * np : nullptr, count, c, dv, da, d_current);
        if (sum.table || a.grad_dense) {
            Steps<R> steps = alif_steps(a, s, sample, start, count);
            steps.state = scratch;
            steps.width = np;
            steps.in = d_current;
            steps.in_row = np;
            steps.out = a.grad_dense ? (R *)a.grad_dense + (sample * a.num_steps + start) * s.n : nullptr;
            steps.out_row = steps.out_width = s.n;
            integrate(events, steps, 0, s.n, true);
        }
        if (!a.w_rec) continue;
        for (i64 t = 0; t < count; t++) {
            const R *arriving = alif_arriving<R>(a, s, sample, start + t);
            if (arriving)
                each_entry(arriving, s.n, [&](i64 from) ELM_LAMBDA {
                    alif_add(sum.w_rec + from * np, d_current + t * np, np);
                });
            if (fed_back)  // within a chunk no spike has arrived yet: its row of `extra` is still to come
                for (i64 to = 0; to < s.n; to++) {
                    const Vector<R> factor = all<R>(d_current[t * np + to]);
                    R *row = extra + (start + t) * np;
                    for (i64 j = 0; j < np; j += W)
                        store(row + j, load(row + j) + factor * load(w.by_receiver + to * np + j));
                }
        }
    }
    if (a.grad_dense)
        std::memset((R *)a.grad_dense + (sample * a.num_steps + length) * s.n, 0,
                    (a.num_steps - length) * s.n * sizeof(R));
    if (a.grad_v_0) copy_row((R *)a.grad_v_0 + sample * s.n, dv, s.n);
    if (a.grad_a_0) copy_row((R *)a.grad_a_0 + sample * s.n, da, s.n);
    for (i64 k = 0; a.grad_s_0 && k < s.history; k++) {
        R *to = (R *)a.grad_s_0 + (sample * s.history + k) * s.n;
        if (extra)
            copy_row(to, extra + k * np, s.n);
        else
            std::memset(to, 0, s.n * sizeof(R));
    }
    return 0;
}

template <class R> static void alif_forward(const ElmAlif *a, ElmShare *share) {
    const AlifShape<R> s(*a);
    Arena arena(AlifLayer<R>::bytes(*a, s));
    share->status = !arena.base;
    if (share->status) return;
    const AlifLayer<R> w(*a, s, arena);
    for (i64 sample = share->first; sample < share->last; sample++)
        share->status |= alif_forward_sample(*a, s, w, sample);
}

template <class R> static void alif_backward(const ElmAlif *a, ElmShare *share) {
    const AlifShape<R> s(*a);
    Arena arena(AlifLayer<R>::bytes(*a, s));
    share->status = !arena.base;
    void *sums = nullptr;
    const size_t bytes = (size_t)s.sums(*a) * sizeof(R);
    if (share->status || posix_memalign(&sums, 64, bytes)) {
        share->status = 1;
        return;
    }
    std::memset(sums, 0, bytes);
    share->scratch = sums;
    const AlifLayer<R> w(*a, s, arena);
    const AlifSums<R> sum(*a, s, (R *)sums);
    for (i64 sample = share->first; sample < share->last; sample++)
        share->status |= alif_backward_sample(*a, s, w, sample, sum);
}

// The threads' sums in their order; returns 1 where one of them lacked memory.
template <class R> static i64 alif_reduce(const ElmAlif *a, const ElmShare *share, i64 num_share) {
    const AlifShape<R> s(*a);
    i64 lacking = 0;
    for (i64 k = 0; k < num_share; k++) lacking |= share[k].status;
    R *total = (R *)share[0].scratch;
    for (i64 k = 1; k < num_share && !lacking; k++)
        for (i64 j = 0; j < s.sums(*a); j++) total[j] += ((const R *)share[k].scratch)[j];
    if (!lacking) {
        const AlifSums<R> sum(*a, s, total);
        copy_row((R *)a->grad_bias, sum.bias, s.n);
        copy_row((R *)a->grad_beta, sum.beta, s.n);
        if (a->grad_p) copy_row((R *)a->grad_p, sum.p, s.n);
        if (a->grad_b) copy_row((R *)a->grad_b, sum.b, s.n);
        if (a->w_rec)
            for (i64 from = 0; from < s.n; from++)
                for (i64 to = 0; to < s.n; to++)
                    ((R *)a->grad_w_rec)[to * s.n + from] = sum.w_rec[from * s.np + to];
        if (a->grad_table) std::memcpy(a->grad_table, sum.table, a->num_input * s.np * sizeof(R));
    }
    for (i64 k = 0; k < num_share; k++) free(share[k].scratch);
    return lacking;
}

}  // namespace ELM_ISA
